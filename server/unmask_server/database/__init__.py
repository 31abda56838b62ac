"""The SQL database: its tables, how it is reached, and its migrations."""
