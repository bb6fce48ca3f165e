//! Models on this machine: what they are called, where their bytes come from, who vouches for them.
//!
//! Reading order: [`names`] (how people call them), [`catalogue`] (which are here), [`import`] (from
//! a file), [`pull`] (from the web), [`recipe`] and [`create`] (from a model that is here).
//!
//! Invariant: nothing here parses weights. What is inside a file is told by an inspection behind the
//! wall, handed in as [`import::Inspect`].

pub mod catalogue;
pub mod create;
pub mod fit;
pub mod import;
pub mod modelfile;
pub mod names;
pub mod parameters;
pub mod parts;
pub mod pull;
pub mod purpose;
pub mod recipe;
