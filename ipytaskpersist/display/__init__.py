"""The appearance of tasks: lists, cards, details, greetings."""
