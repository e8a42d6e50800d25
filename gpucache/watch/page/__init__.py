"""The page of a cache: its values, its charts, and how both become one file of HTML."""
