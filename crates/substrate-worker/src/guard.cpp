// Calls back into Rust and turns any C++ exception that llama.cpp lets escape into a return code.
// Rust may let a foreign exception pass through its frames, but only C++ may catch it.

extern "C" int substrate_guard(void (*call)(void *), void * argument) noexcept {
    try {
        call(argument);
        return 0;
    } catch (...) {
        return 1;
    }
}
