"""What a run was worth: which stack, against what, on which benchmark; a look at the student, and handing it on."""
