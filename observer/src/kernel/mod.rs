//! What this kernel can do; loading, attaching and pinning of the kernel programs.
