/// What the tool and the bindings say about the package.
package enum Library {
  /// Its version; that of the C header is compared with it.
  package static let version = "0.1.0"
}
