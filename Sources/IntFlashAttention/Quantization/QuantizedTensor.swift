/// A tensor as codes and scales: what ``Quantizer`` makes.
///
/// value = code · scale, rotated back and with the mean added where the quantiser did so.
public struct QuantizedTensor: ~Copyable, Sendable {
  /// How it was quantised.
  public let quantizer: Quantizer
  /// `[B, H, N, D]`.
  public let shape: [Int]
  /// The codes: `[B, H, N, D]` in int8, int4 or float8.
  ///
  /// Progressive 4-bit codes are stored as code − 8.
  public let codes: Tensor
  /// `[B, H, N]` per token, `[B, H, ⌈N / n⌉]` per block, `[B, H]` per tensor, `[B, H, D]` per channel.
  public let scales: Part
  /// `[B, H, D]`: the means that were subtracted; nil without centring.
  public let means: Part?
  /// `[B, H, token groups, channel groups]`: steps of progressive 4-bit groups, 1…17; nil otherwise.
  public let steps: Part?
  /// As `steps`: the offsets, −127…127.
  public let offsets: Part?

  /// Numbers that belong to the codes, row-major.
  public struct Part: Hashable, Sendable {
    /// Sizes, outermost first.
    public let shape: [Int]
    /// The numbers.
    public let values: [Float]

    /// A part of this shape.
    ///
    /// - Throws: `AttentionError` with code `.shapeMismatch` unless the values fill the shape.
    public init(_ values: [Float], shape: [Int]) throws(AttentionError) {
      guard try TensorGeometry.storageCount(shape, .float32) == values.count else {
        throw AttentionError(
          .shapeMismatch,
          "\(values.count) values do not fill shape \(shape)"
        )
      }
      self.shape = shape
      self.values = values
    }
  }

  /// The element type of codes and the shapes of the parts beside them.
  fileprivate struct Layout {
    let codes: ElementType
    let scales: [Int]
    let means: [Int]?
    let groups: [Int]?

    /// Groups of `length` that `count` elements make; the length may be any positive number.
    static func groups(_ count: Int, _ length: Int) -> Int {
      count / length + (count.isMultiple(of: length) ? 0 : 1)
    }

    init(_ quantizer: Quantizer, shape: [Int]) {
      let heads = [shape[0], shape[1]]
      switch quantizer.format {
      case .float8: codes = .float8
      case .int4, .int4Clipped, .int4Progressive: codes = .int4
      case .int8, .float32, .bfloat16, .float16: codes = .int8
      }
      switch quantizer.format.granularity {
      case .token: scales = heads + [shape[2]]
      case .block(let length): scales = heads + [Self.groups(shape[2], length)]
      case .channel: scales = heads + [shape[3]]
      case .tensor, nil: scales = heads
      }
      means = quantizer.centers ? heads + [shape[3]] : nil
      if case .int4Progressive(let tokens, let channels) = quantizer.format {
        groups =
          heads + [
            Self.groups(shape[2], tokens), Self.groups(shape[3], channels),
          ]
      } else {
        groups = nil
      }
    }
  }

  init(
    quantizer: Quantizer,
    shape: [Int],
    heads: [QuantizedHead]
  ) throws(AttentionError) {
    let layout = Layout(quantizer, shape: shape)
    let granularity = quantizer.format.granularity ?? .tensor
    let values: [Float]
    if case .int4Progressive(let tokens, let channels) = quantizer.format {
      values = heads.flatMap { $0.progressiveCodes(tokens: tokens, channels: channels) }
    } else {
      values = heads.flatMap(\.codes.codes)
    }
    try self.init(
      quantizer: quantizer,
      codes: Tensor(values, shape: shape, elementType: layout.codes),
      scales: Part(heads.flatMap { $0.scales(granularity) }, shape: layout.scales),
      means: Self.part(heads.flatMap { $0.mean ?? [] }, layout.means),
      steps: Self.part(heads.flatMap { $0.groups.map(\.step) }, layout.groups),
      offsets: Self.part(heads.flatMap { $0.groups.map(\.offset) }, layout.groups)
    )
  }

  private static func part(_ values: [Float], _ shape: [Int]?) throws(AttentionError) -> Part? {
    guard let shape else { return nil }
    return try Part(values, shape: shape)
  }

  /// Puts parts together that were stored apart.
  ///
  /// - Throws: `AttentionError` with code `.shapeMismatch` where a part is missing, superfluous or of
  ///   another shape than the quantiser gives it, `.unsupportedElementType` where the codes are of
  ///   another type, `.invalidArgument` for a format that contradicts itself.
  public init(
    quantizer: Quantizer,
    codes: consuming Tensor,
    scales: Part,
    means: Part? = nil,
    steps: Part? = nil,
    offsets: Part? = nil
  ) throws(AttentionError) {
    let shape = codes.shape
    guard shape.count == 4, AttentionShape.supportedDimensions.contains(shape[3]) else {
      throw AttentionError(
        .shapeMismatch,
        "codes have shape \(shape); it must be [B, H, N, D] with D between 1 and 256"
      )
    }
    try quantizer.format.validate()
    let layout = Layout(quantizer, shape: shape)
    guard codes.elementType == layout.codes else {
      throw AttentionError(
        .unsupportedElementType,
        "codes are \(codes.elementType.rawValue); this quantiser makes \(layout.codes.rawValue)"
      )
    }
    for (name, part, wanted) in [
      ("scales", scales, layout.scales), ("means", means, layout.means),
      ("steps", steps, layout.groups), ("offsets", offsets, layout.groups),
    ] as [(String, Part?, [Int]?)] where part?.shape != wanted {
      throw AttentionError(
        .shapeMismatch,
        "\(name) have \(part.map { "shape \($0.shape)" } ?? "no values"); this quantiser makes "
          + (wanted.map { "shape \($0)" } ?? "none")
      )
    }
    self.quantizer = quantizer
    self.shape = shape
    self.codes = codes
    self.scales = scales
    self.means = means
    self.steps = steps
    self.offsets = offsets
  }

  /// Bytes of codes, scales and everything else that has to be kept.
  public var byteCount: Int {
    codes.byteCount + 4 * (scales.values.count + (means?.values.count ?? 0))
      + (steps?.values.count ?? 0) + (offsets?.values.count ?? 0)
  }

  /// The values that the codes stand for, as float32 [B, H, N, D].
  ///
  /// - Throws: `AttentionError` with code `.outOfMemory`.
  public func dequantized() throws(AttentionError) -> Tensor {
    let (tokens, dimension) = (shape[2], shape[3])
    var values = codes.copyFloats()
    let scales = scales.values
    let means = means?.values
    if let steps = steps?.values, let offsets = offsets?.values {
      decodeGroups(&values, steps: steps, offsets: offsets)
    }
    let headCount = shape[0] * shape[1]
    let scalesPerHead = headCount == 0 ? 0 : scales.count / headCount
    for head in 0..<headCount {
      for token in 0..<tokens {
        let row = (head * tokens + token) * dimension
        for channel in 0..<dimension {
          let index =
            switch quantizer.format.granularity {
            case .token: token
            case .block(let length): token / length
            case .channel: channel
            case .tensor, nil: 0
            }
          values[row + channel] *= scales[head * scalesPerHead + index]
        }
      }
    }
    if quantizer.rotates { HadamardRotation(dimension: dimension).apply(&values) }
    if let means {
      for index in values.indices {
        values[index] += means[index / (tokens * dimension) * dimension + index % dimension]
      }
    }
    return try Tensor(values, shape: shape)
  }

  private func decodeGroups(_ values: inout [Float], steps: [Float], offsets: [Float]) {
    guard case .int4Progressive(let groupTokens, let groupChannels) = quantizer.format else {
      return
    }
    let (tokens, dimension) = (shape[2], shape[3])
    let rows = Layout.groups(tokens, groupTokens)
    let columns = Layout.groups(dimension, groupChannels)
    for index in values.indices {
      let (line, channel) = index.quotientAndRemainder(dividingBy: dimension)
      let (head, token) = line.quotientAndRemainder(dividingBy: tokens)
      let place = (head * rows + token / groupTokens) * columns + channel / groupChannels
      let group = ProgressiveGroup(step: steps[place], offset: offsets[place])
      values[index] = group.decoded(values[index] + 8)
    }
  }

  /// How far the dequantised values are from those that were quantised.
  ///
  /// - Throws: `AttentionError` with code `.shapeMismatch` for a tensor of another shape.
  public func error(against original: TensorView) throws(AttentionError) -> AccuracyReport {
    let values = try dequantized()
    return try AccuracyReport(values.view, against: original.operand())
  }
}

extension QuantizedHead {
  /// The scales that are stored: one per group of the granularity.
  func scales(_ granularity: ScaleGranularity) -> [Float] {
    switch granularity {
    case .token: codes.rowScales
    case .block(let length):
      stride(from: 0, to: codes.count, by: length).map { codes.rowScales[$0] }
    case .tensor: [codes.rowScales.first ?? 1]
    case .channel: codes.channelScales ?? []
    }
  }

  /// The 4-bit codes of progressive groups, less 8 so that they fit a signed element.
  func progressiveCodes(tokens: Int, channels: Int) -> [Float] {
    let columns = QuantizedTensor.Layout.groups(codes.dimension, channels)
    return codes.codes.indices.map { index in
      let (row, channel) = index.quotientAndRemainder(dividingBy: codes.dimension)
      let group = groups[row / tokens * columns + channel / channels]
      return group.encoded(codes.codes[index]) - 8
    }
  }
}
