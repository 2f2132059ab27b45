"""Real processes killed, stopped and cut off at random; nothing acknowledged may be lost."""
