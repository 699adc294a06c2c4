"""Files and directories that others may have touched: opened with care, read within bounds."""
