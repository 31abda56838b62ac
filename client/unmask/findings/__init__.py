"""The paper's claims, one by one, examined on students, tasks and teachers of one's own.

"Unmasking On-Policy Distillation", arXiv 2605.10889. Each claim is a file in `claims`: what it
says, a table of numbers with intervals, and a verdict by a rule that is stated with it.
"""
