"""What runs in a terminal or a browser: commands, chat, copying of definitions, script helpers."""
