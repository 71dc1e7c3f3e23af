/// What a call may choose besides its shape and precision.
public struct AttentionOptions: Hashable, Sendable {
  /// Multiplies q · k.
  ///
  /// nil is 1/√D. Finite, of either sign.
  public var softmaxScale: Float?
  /// Caps logits: x becomes softcap · tanh(x / softcap).
  ///
  /// nil is off; otherwise positive and finite.
  public var softcap: Float?
  /// Which keys a query sees.
  public var mask: AttentionMask
  /// Which blocks of queries see which blocks of keys, beside the mask: a key is seen where both let
  /// it; nil is all.
  public var blocks: VisibleBlocks?

  /// Options; the defaults are those of plain scaled dot-product attention.
  public init(
    softmaxScale: Float? = nil,
    softcap: Float? = nil,
    mask: AttentionMask = .full,
    blocks: VisibleBlocks? = nil
  ) {
    self.softmaxScale = softmaxScale
    self.softcap = softcap
    self.mask = mask
    self.blocks = blocks
  }

  package func validate() throws(AttentionError) {
    if let softmaxScale, !softmaxScale.isFinite {
      throw AttentionError(.invalidArgument, "softmaxScale is \(softmaxScale); it must be finite")
    }
    if let softcap, !(softcap.isFinite && softcap > 0) {
      throw AttentionError(
        .invalidArgument,
        "softcap is \(softcap); it must be positive and finite, or nil for none"
      )
    }
    try mask.validate()
  }
}
