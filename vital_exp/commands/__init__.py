"""The commands: each composes its configuration and calls the library. torch is imported when a job runs."""
