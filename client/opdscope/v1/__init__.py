"""Generated messages and service stubs of the package `opdscope.v1`; see protos/."""
