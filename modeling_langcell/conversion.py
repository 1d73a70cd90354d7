def fold_token_types(state):
    """A BERT state dict without token types: their first row, which every token gets, goes into the positions."""
    state = dict(state)
    token_types = state.pop("embeddings.token_type_embeddings.weight")
    state["embeddings.position_embeddings.weight"] = state["embeddings.position_embeddings.weight"] + token_types[0]
    return state
