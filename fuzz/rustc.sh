#!/bin/sh
# RUSTC_WRAPPER for the fuzz targets: adds libFuzzer's coverage to our decoders, the libraries that
# parse beneath them and the targets themselves, and to nothing else: not to build scripts, which
# could not link it, and not to arithmetic, which would drown what we look for.
#
# These are stable rustc flags, so no nightly toolchain and no cargo-fuzz is needed.

rustc=$1
shift
crate=
previous=
for argument in "$@"; do
    [ "$previous" = "--crate-name" ] && crate=$argument
    previous=$argument
done

case $CARGO_PKG_NAME:$crate in
    *:build_script_*)
        exec "$rustc" "$@"
        ;;
    substrate-fuzz:* | substrate-record:* | substrate-sandbox:* | substrate-tee:* | \
        bech32:* | ciborium:* | ciborium-ll:* | coset:* | der:* | postcard:* | sev:* | x509-cert:*)
        exec "$rustc" "$@" -Ccodegen-units=1 -Cpasses=sancov-module \
            -Cllvm-args=-sanitizer-coverage-level=4 \
            -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
            -Cllvm-args=-sanitizer-coverage-pc-table \
            -Cllvm-args=-sanitizer-coverage-trace-compares
        ;;
    *)
        exec "$rustc" "$@"
        ;;
esac
