"""What a monitoring system reads of a cache: families of numbers as values, their text, and a server of that."""
