import CDemoActivations

/// The activations that are part of the program.
enum DemoActivations {
  /// What tables call them.
  static let name = "activations"

  /// Where they are from, with the licences.
  static let source = """
    layer 15 of SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) on text of the Jargon File 4.4.7 \
    (public domain)
    """

  /// The embedded file.
  static func file() throws -> ActivationFile {
    let bytes = unsafe UnsafeBufferPointer(
      start: intfa_demo_activations(),
      count: intfa_demo_activations_size()
    )
    return try unsafe ActivationFile(bytes: bytes.span, name: "embedded activations")
  }
}
