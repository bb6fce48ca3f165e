//! End to end: real daemons, the real engine behind its wall, a real model, over real sockets.
//!
//! They run one at a time (.config/nextest.toml): two engines on two cores would measure each other.

mod abandoned;
mod batches;
mod clock;
mod embeddings;
mod failover;
mod fit;
mod hostile;
mod images;
mod installed;
mod isolated;
mod link;
mod load;
mod long;
mod machines;
mod misuse;
mod network;
mod own;
mod owner;
mod probing;
mod replay;
mod retention;
mod root;
mod scope;
mod speed;
mod start;
mod stop;
mod unusable;
mod walls;
