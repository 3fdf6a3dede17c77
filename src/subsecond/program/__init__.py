"""Programs: the op table, the data types, and what turns one program into a better one."""
