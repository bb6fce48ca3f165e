#!/bin/sh
# RUSTC_WRAPPER for the fuzz targets: adds libFuzzer's coverage to our decoders, the CBOR libraries
# beneath them and the targets themselves, and to nothing else: neither build scripts, which could
# not link it, nor the network stack, which would drown what we look for.
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

case $crate in
    substrate_record | substrate_sandbox | substrate_mesh | substrate | ciborium | ciborium_ll | coset | postcard | \
        record_* | export_* | wire_* | input_* | job_* | invite*)
        exec "$rustc" "$@" -Ccodegen-units=1 -Cpasses=sancov-module \
            -Cllvm-args=-sanitizer-coverage-level=4 \
            -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
            -Cllvm-args=-sanitizer-coverage-pc-table \
            -Cllvm-args=-sanitizer-coverage-trace-compares
        ;;
    *) exec "$rustc" "$@" ;;
esac
