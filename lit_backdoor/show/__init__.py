"""Results as matplotlib figures and as Markdown. Nothing here opens a window or writes a file."""
