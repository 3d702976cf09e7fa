"""The commands: each reads the configuration and calls the library. Nothing here imports torch until a job runs."""
