"""A volume's log and pages in object storage, all the time, and volumes made out of them again."""
