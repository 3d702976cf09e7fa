"""The job: makes all pictures of a request, batch after batch, on one or several ranks."""
