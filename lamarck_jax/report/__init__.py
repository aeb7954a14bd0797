"""What a person looks at: the page of a run or a study, its server, TensorBoard."""
