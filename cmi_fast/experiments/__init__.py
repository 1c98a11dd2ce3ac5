"""The paper's four tables, by one command each; nothing here is imported by anything but the command line."""
