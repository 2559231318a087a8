"""What each modality means: its unit, how it is cleaned, and a simulator with known ground truth."""
