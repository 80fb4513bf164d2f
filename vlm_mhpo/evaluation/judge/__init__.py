"""A language model that judges beside the rules: its server, its kept answers, and its verdicts on judged rows."""
