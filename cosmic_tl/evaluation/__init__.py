"""What steering does to completions: generation, refusal judges, rates, fluency."""
