//! What a model is for, as far as its architecture tells: the one thing that is known of another node's model.
//!
//! Absent by design: the header. A model that answers by its architecture and pools by its header is found out when
//! its worker loads it, and refuses the other kind of job then.

/// Architectures of llama.cpp whose tokens see those that follow: they make vectors, and answer nothing.
const MAKE_VECTORS: [&str; 9] = [
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "eurobert",
    "gemma-embedding",
];

/// What a model of this architecture does, in Ollama's word.
pub fn capability(arch: &str) -> &'static str {
    if MAKE_VECTORS.contains(&arch) {
        "embedding"
    } else {
        "completion"
    }
}
