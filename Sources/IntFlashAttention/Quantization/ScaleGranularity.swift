/// How many elements share one scale.
public enum ScaleGranularity: Hashable, Sendable {
  /// One scale per token (row).
  case token
  /// One scale per this many consecutive tokens; the last block may be shorter.
  case block(Int)
  /// One scale per batch and head.
  case tensor
  /// One scale per channel (column), shared by all tokens.
  case channel

  /// Lengths of blocks and groups: no position plus a length overflows.
  static let lengths = 1...AttentionShape.largestLength

  package func validate() throws(AttentionError) {
    if case .block(let length) = self, !Self.lengths.contains(length) {
      throw AttentionError(
        .invalidArgument,
        "granularity block(\(length)): the length must be between 1 and \(Self.lengths.upperBound)"
      )
    }
  }
}

/// The format that one operand of the products is rounded to.
///
/// Integer formats are symmetric linear: code = rnd(x · levels / max|x|), nearest with ties to even,
/// value = code · max|x| / levels, where the maximum is taken over the elements that share a scale
/// and is at least 2⁻¹⁰⁰.
public enum OperandFormat: Hashable, Sendable {
  /// As given.
  case float32
  /// Rounded to bfloat16.
  case bfloat16
  /// Rounded to float16; the largest finite value is 65504.
  case float16
  /// FP8 E4M3 with levels = 448.
  case float8(ScaleGranularity)
  /// Codes −127…127 with levels = 127.
  case int8(ScaleGranularity)
  /// Codes −7…7 with levels = 7.
  case int4(ScaleGranularity)
  /// Codes −8…7, one scale per token, shrunk by the factor of 1, 0.95, … 0.7 with the least squared
  /// error of the row.
  case int4Clipped
  /// Four bits that stand for exact INT8 codes ("progressive").
  ///
  /// INT8 per token first; then, per group of `tokens` × `channels` codes, step = max(1,
  /// ⌈(max − min) / 15⌉) and code = rnd((x − min) / step) in 0…15, which decodes to code · step +
  /// min, clamped to ±127. Groups are cut at fixed positions; the last may be smaller.
  case int4Progressive(tokens: Int, channels: Int)

  /// The largest code, or 1 for formats without a scale.
  package var levels: Float {
    switch self {
    case .float32, .bfloat16, .float16: 1
    case .float8: Float8.greatestFiniteMagnitude
    case .int8, .int4Progressive: 127
    case .int4, .int4Clipped: 7
    }
  }

  /// Whether codes are integers, which multiply exactly.
  package var isInteger: Bool {
    switch self {
    case .int8, .int4, .int4Clipped, .int4Progressive: true
    case .float32, .bfloat16, .float16, .float8: false
    }
  }

  package var granularity: ScaleGranularity? {
    switch self {
    case .float8(let granularity), .int8(let granularity), .int4(let granularity): granularity
    case .int4Clipped, .int4Progressive: .token
    case .float32, .bfloat16, .float16: nil
    }
  }

  package func validate() throws(AttentionError) {
    try granularity?.validate()
    let lengths = ScaleGranularity.lengths
    if case .int4Progressive(let tokens, let channels) = self,
      !lengths.contains(tokens) || !lengths.contains(channels)
    {
      throw AttentionError(
        .invalidArgument,
        "int4Progressive(tokens: \(tokens), channels: \(channels)): both must be between 1 and "
          + "\(lengths.upperBound)"
      )
    }
  }
}
