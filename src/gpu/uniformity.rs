//! Whether all invocations of a workgroup reach the same barriers.
