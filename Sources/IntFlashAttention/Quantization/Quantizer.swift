/// How a tensor is quantised: a format, and what is done to the rows before.
///
/// The parts compose: centring and rotation change what is rounded, the format how. This is the plain
/// definition, the same that the recipes of attention are made of.
public struct Quantizer: Hashable, Sendable {
  /// The format of codes and the granularity of scales.
  public var format: OperandFormat
  /// Whether the mean over the tokens of a head is subtracted first and kept.
  public var centers: Bool
  /// Whether rows are multiplied by a Hadamard matrix first; see ``HadamardRotation``.
  public var rotates: Bool

  /// A quantiser with these parts.
  public init(_ format: OperandFormat, centers: Bool = false, rotates: Bool = false) {
    self.format = format
    self.centers = centers
    self.rotates = rotates
  }

  /// Codes and scales of a tensor.
  ///
  /// - Complexity: O(elements · log D).
  /// - Parameter view: [B, H, N, D] or [H, N, D] in float32, float16 or bfloat16.
  /// - Returns: the codes and everything that is needed to turn them back.
  /// - Throws: `AttentionError` with code `.unsupportedElementType` for other element types,
  ///   `.invalidArgument` for another rank, a dimension outside 1…256 or a format without codes,
  ///   `.nonFiniteInput` or `.valueOutOfRange` for an element that cannot be quantised.
  public func quantize(_ view: TensorView) throws(AttentionError) -> QuantizedTensor {
    try format.validate()
    guard format.granularity != nil else {
      throw AttentionError(
        .invalidArgument,
        "format \(format) has no codes; choose float8, int8 or one of the int4 formats"
      )
    }
    guard view.elementType.isFloatingPointOperand else {
      throw AttentionError(
        .unsupportedElementType,
        "the tensor is \(view.elementType.rawValue); it must be float32, float16 or bfloat16"
      )
    }
    let operand = try view.operand()
    let dimension = operand.shape[3]
    guard AttentionShape.supportedDimensions.contains(dimension) else {
      throw AttentionError(
        .invalidArgument,
        "the last dimension is \(dimension); it must be between 1 and "
          + "\(AttentionShape.supportedDimensions.upperBound)"
      )
    }
    var heads: [QuantizedHead] = []
    for batch in 0..<operand.shape[0] {
      for head in 0..<operand.shape[1] {
        let rows = HeadRows(operand, batch: batch, head: head)
        try requireFinite(rows, batch: batch, head: head)
        heads.append(QuantizedHead(rows, by: self))
      }
    }
    return try QuantizedTensor(quantizer: self, shape: operand.shape, heads: heads)
  }

  private func requireFinite(_ rows: HeadRows, batch: Int, head: Int) throws(AttentionError) {
    let limit = InputCheck.limit(for: format)
    for token in 0..<rows.count {
      let row = rows.row(token)
      guard row.contains(where: { !($0.magnitude < limit) }) else { continue }
      throw InputCheck.error(nil, batch: batch, head: head, token: token, row: row, limit: limit)
    }
  }
}

/// One head after quantisation.
struct QuantizedHead: Sendable {
  let codes: HeadCodes
  /// The mean that was subtracted, or nil.
  let mean: [Float]?
  /// Steps and offsets of progressive 4-bit groups, group by group; empty for other formats.
  let groups: [ProgressiveGroup]

  init(_ rows: HeadRows, by quantizer: Quantizer) {
    var rows = rows
    let mean = quantizer.centers ? rows.mean() : nil
    if let mean { rows.subtract(mean) }
    if quantizer.rotates {
      HadamardRotation(dimension: rows.dimension).apply(&rows.values)
    }
    self.mean = mean
    if case .int4Progressive(let tokens, let channels) = quantizer.format {
      // The groups are found in the INT8 codes that the 4-bit ones stand for.
      let int8 = HeadCodes(rows, .int8(.token))
      groups = ProgressiveGroup.groups(of: int8, tokens: tokens, channels: channels)
      codes = int8
    } else {
      groups = []
      codes = HeadCodes(rows, quantizer.format)
    }
  }
}

extension ProgressiveGroup {
  /// The groups of a head: those of the first `tokens` rows, channel by channel, then the next.
  static func groups(of head: HeadCodes, tokens: Int, channels: Int) -> [ProgressiveGroup] {
    var groups: [ProgressiveGroup] = []
    for row in stride(from: 0, to: head.count, by: tokens) {
      for channel in stride(from: 0, to: head.dimension, by: channels) {
        var codes: [Float] = []
        for member in row..<min(row + tokens, head.count) {
          let start = member * head.dimension
          codes += head.codes[start + channel..<start + min(channel + channels, head.dimension)]
        }
        groups.append(ProgressiveGroup(codes: codes))
      }
    }
    return groups
  }
}
