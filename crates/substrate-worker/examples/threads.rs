//! scratch
use substrate_worker::engine::{Engine, LoadOptions};
use substrate_worker::ffi::Interrupt;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let threads: u32 = a[2].parse().unwrap();
    let repeats: u32 = a[3].parse().unwrap();
    let options = LoadOptions { n_ctx: 2048, threads, batch_threads: threads, pool: threads, ..LoadOptions::default() };
    let mut engine = Engine::load(&a[1], &options, Interrupt::default()).unwrap();
    let mut all = Vec::new();
    for _ in 0..repeats {
        let (_, decode) = engine.bench(16, 96).unwrap();
        all.push(format!("{:.1}", decode as f64 / 1e3));
    }
    println!("{}", all.join(" "));
}
