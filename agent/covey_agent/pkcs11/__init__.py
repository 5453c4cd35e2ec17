"""Keys in a PKCS#11 token: a secure element or HSM on the device. Needs the extra `pkcs11`, and the token's own library."""
