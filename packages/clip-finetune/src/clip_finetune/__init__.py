"""clip-finetune."""
