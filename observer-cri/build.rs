//! Makes the client from `proto/api.proto`. protox reads it, so no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/api.proto");
    let files = protox::compile(["api.proto"], ["proto"])?;
    // Tests have a runtime of their own; what it does not have answers that it is not implemented.
    let server = std::env::var_os("CARGO_FEATURE_SERVER").is_some();
    // The definition's comments are not written for rustdoc.
    tonic_prost_build::configure()
        .build_server(server)
        .generate_default_stubs(true)
        .disable_comments(["."])
        .compile_fds(files)?;
    Ok(())
}
