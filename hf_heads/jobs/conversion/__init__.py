"""From a pretrained model to a converted one."""
