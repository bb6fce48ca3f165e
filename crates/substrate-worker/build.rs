//! Compiles the one C++ function of this crate: the `catch` that Rust cannot write.
//!
//! Absent by design: a link to the C++ runtime, which llama-cpp-sys-2 already links statically.

fn main() {
    println!("cargo:rerun-if-changed=src/guard.cpp");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .cpp_link_stdlib(None)
        .file("src/guard.cpp")
        .compile("substrate_guard");
}
