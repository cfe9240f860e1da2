"""Text as terminals, web pages, users and searches see it."""
