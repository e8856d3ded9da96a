//! Makes client and server from `proto/resolver.proto`. protox reads it, so no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/resolver.proto");
    let files = protox::compile(["resolver.proto"], ["proto"])?;
    // The definition's comments are for its own readers.
    tonic_prost_build::configure().disable_comments(["."]).compile_fds(files)?;
    Ok(())
}
