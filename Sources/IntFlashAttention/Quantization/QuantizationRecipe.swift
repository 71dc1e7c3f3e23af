/// Everything that decides the error of an attention call: one exact sequence of operations.
///
/// The named ones (``Precision``) have stated bounds and kernels. Others can be composed from the
/// same parts for research; `ReferenceBackend` computes every valid recipe.
public struct QuantizationRecipe: Hashable, Sendable {
  /// What is subtracted from the queries before they are quantised; it returns as a bias per key.
  public enum QueryCentering: Hashable, Sendable {
    /// Nothing.
    case none
    /// The mean over all rows of a query head.
    case head
    /// The mean over each block of this many rows.
    case block(Int)
  }

  /// How the scale of the values reaches the output.
  public enum ValueScale: Hashable, Sendable {
    /// As a factor of the output: one scale per head or channel.
    case output
    /// Folded into the logits as log2 f, f = max(scale, mean of the scales / 8), one per token.
    ///
    /// The floor is needed: an attention sink with V near 0 has a large probability, and f near 0
    /// would round it to code 0.
    case folded
    /// As `folded`, with f = unit / n, unit = mean of max|v| / 8 and n = ⌊127 · unit / max|v|⌋ in
    /// 1…127: then the weighted row sum Σ p·n is an integer. Needs `RowSum.automatic`.
    case foldedReciprocal
  }

  /// How P is rounded before it multiplies V.
  public enum Probability: Hashable, Sendable {
    /// ⌊255 p + ½⌋, unsigned.
    case unsigned8
    /// ⌊127 p + ½⌋.
    case signed8
    /// The nearest float16, bfloat16, or E4M3 of 256 p; or float32 as it is.
    case float16, bfloat16, float8, float32
  }

  /// What P is relative to.
  public enum Reference: Hashable, Sendable {
    /// The largest logit of the row so far; where P is float32 or bfloat16, the next whole power of
    /// two, so that the bits of P do not depend on when the maximum moved.
    case runningMaximum
    /// The largest logit of the row inside the tile, so that every tile uses all codes of P.
    case tileMaximum
  }

  /// What the denominator sums.
  public enum RowSum: Hashable, Sendable {
    /// The rounded codes, so that rounding errors of numerator and denominator cancel.
    case codes
    /// Probabilities before they are rounded to the format of P; with `table64` their exponent is in
    /// steps of 1/64 already.
    case exact
    /// `codes`, but `exact` for a head with a value token above four times the mean.
    ///
    /// Such a token pushes its neighbours in the tile to code 0 and their mass out of a sum over
    /// codes. That head also has tiles of 64 keys, a mean without such tokens, and no integer n.
    case automatic
  }

  /// How 2^x is evaluated.
  public enum Exponential: Hashable, Sendable {
    /// To the precision of the arithmetic.
    case exact
    /// x rounded to 1/64, then a table of 64 16-bit values and a shift.
    case table64
  }

  /// Format of the queries.
  public var query: OperandFormat
  /// Format of the keys.
  public var key: OperandFormat
  /// Format of the values.
  public var value: OperandFormat
  /// Whether queries and keys are multiplied by a Hadamard matrix.
  public var rotatesQueryAndKey: Bool
  /// Whether values are, and the output back.
  public var rotatesValue: Bool
  /// Whether the mean over the tokens is subtracted from the keys.
  public var centersKey: Bool
  /// What is subtracted from the queries.
  public var queryCentering: QueryCentering
  /// How the scale of the values is applied.
  public var valueScale: ValueScale
  /// Format of P.
  public var probability: Probability
  /// What P is relative to.
  public var reference: Reference
  /// What the denominator sums.
  public var rowSum: RowSum
  /// How powers of two are evaluated.
  public var exponential: Exponential
  /// Whether P keeps sixteen bits, those of 65280 · 2^y, in the tile that a row's mask ends in.
  ///
  /// That is the tile of the row's own position, where softmax is sharpest: one weight near the
  /// maximum leaves the others of its tile few codes. Only where the mask moves with the row, not
  /// under `AttentionMask.full`. Needs `Probability.unsigned8` and `Reference.tileMaximum`.
  public var refinesLastTile: Bool
  /// Keys of the first tile.
  ///
  /// Shorter than the others, so that an attention sink at the first token shares its tile, and with
  /// it the codes of P, with few keys.
  public var firstTileLength: Int
  /// Keys of every other tile.
  ///
  /// The CPU backend computes lengths of 64 and 128, here and of the first tile.
  public var tileLength: Int
  /// Tiles whose sums are accumulated together, a span; nil is all of them.
  ///
  /// The first span has the first tile on top. Spans are merged in key order.
  public var tilesPerSpan: Int?

  /// A recipe without quantisation; change what should differ.
  public init() {
    query = .float32
    key = .float32
    value = .float32
    rotatesQueryAndKey = false
    rotatesValue = false
    centersKey = false
    queryCentering = .none
    valueScale = .output
    probability = .float32
    reference = .runningMaximum
    rowSum = .exact
    exponential = .exact
    refinesLastTile = false
    firstTileLength = 64
    tileLength = 64
    tilesPerSpan = nil
  }

  /// Whether the running maximum is rounded up to a whole power of two.
  package var hasWholeReference: Bool {
    reference == .runningMaximum && (probability == .float32 || probability == .bfloat16)
  }

  /// Keys of every tile but the first, for a head with or without outliers in its values.
  package func tileLength(hasOutlier: Bool) -> Int {
    hasOutlier ? min(FoldedValueScales.outlierTileLength, tileLength) : tileLength
  }

  /// The first key of the tile that holds this key.
  package func tileStart(of key: Int, tileLength: Int) -> Int {
    key < firstTileLength ? 0 : key - (key - firstTileLength) % tileLength
  }

  /// The keys of span `index`, or nil after the last.
  package func span(_ index: Int, keyValueLength: Int) -> Range<Int>? {
    guard let tilesPerSpan else { return index == 0 ? 0..<keyValueLength : nil }
    // The first tile comes on top of the first span: then no power of two ends just after a span.
    let begin = index == 0 ? 0 : firstTileLength + index * tilesPerSpan * tileLength
    guard begin < keyValueLength else { return nil }
    let end = firstTileLength + (index + 1) * tilesPerSpan * tileLength
    return begin..<min(end, keyValueLength)
  }

  package func validate() throws(AttentionError) {
    try query.validate()
    try key.validate()
    try value.validate()
    func refuse(_ rule: String) throws(AttentionError) {
      throw AttentionError(.invalidArgument, "recipe: \(rule)")
    }
    if case .block(let rows) = queryCentering, rows < 1 {
      try refuse("queryCentering block(\(rows)) must have at least one row")
    }
    if firstTileLength < 1 || tileLength < 1 {
      try refuse("tile lengths \(firstTileLength) and \(tileLength) must be at least 1")
    }
    if let tilesPerSpan, tilesPerSpan < 1 {
      try refuse("tilesPerSpan is \(tilesPerSpan); it must be at least 1")
    }
    if query.granularity == .channel || key.granularity == .channel {
      try refuse("a scale per channel of queries or keys does not factor out of their product")
    }
    let integerProbability = probability == .unsigned8 || probability == .signed8
    if integerProbability && !value.isInteger {
      try refuse("probability \(probability) needs values in an integer format")
    }
    if rowSum == .automatic && valueScale == .output {
      try refuse("rowSum automatic needs valueScale folded or foldedReciprocal")
    }
    if rowSum != .automatic && valueScale == .foldedReciprocal {
      try refuse("valueScale foldedReciprocal needs rowSum automatic")
    }
    let outlierLength = FoldedValueScales.outlierTileLength
    if rowSum == .automatic, !tileLength.isMultiple(of: outlierLength),
      !outlierLength.isMultiple(of: tileLength)
    {
      try refuse("rowSum automatic needs tiles of a multiple or part of 64 keys, not \(tileLength)")
    }
    if exponential == .table64 && (probability != .unsigned8 || reference != .tileMaximum) {
      try refuse("exponential table64 needs probability unsigned8 and reference tileMaximum")
    }
    if refinesLastTile && (probability != .unsigned8 || reference != .tileMaximum) {
      try refuse("refinesLastTile needs probability unsigned8 and reference tileMaximum")
    }
    switch (valueScale, value) {
    case (.output, .int8(.token)), (.output, .int8(.block)), (.output, .int4Clipped),
      (.output, .int4Progressive), (.output, .int4(.token)), (.output, .int4(.block)),
      (.output, .float8(.token)), (.output, .float8(.block)):
      try refuse(
        "value format \(value) has a scale per token, which valueScale output cannot apply"
      )
    case (.folded, .int8(.token)), (.folded, .int4Progressive), (.foldedReciprocal, .int8(.token)),
      (.foldedReciprocal, .int4Progressive), (.output, _):
      break
    default: try refuse("valueScale \(valueScale) needs values with one INT8 scale per token")
    }
  }
}

extension QuantizationRecipe {
  /// Bytes that one token's key and value take per key/value head when stored in this recipe.
  ///
  /// Scales, steps and offsets are counted: a float32 per key scale, a byte per integer reciprocal of
  /// a value scale and two bytes per real one. Scales of a whole head are not.
  public func keyValueBytesPerToken(_ shape: AttentionShape) -> Double {
    keyValueBytesPerToken(
      headDimension: shape.headDimension,
      valueDimension: shape.valueDimension
    )
  }

  func keyValueBytesPerToken(headDimension: Int, valueDimension: Int) -> Double {
    bytesPerToken(key, headDimension) + bytesPerToken(value, valueDimension)
      - (valueScale == .foldedReciprocal ? 3 : valueScale == .folded ? 2 : 0)
  }

  private func bytesPerToken(_ format: OperandFormat, _ dimension: Int) -> Double {
    let elements = Double(dimension)
    let scale = format.granularity == .token ? 4.0 : 0
    switch format {
    case .float32: return 4 * elements
    case .bfloat16, .float16: return 2 * elements
    case .float8, .int8: return elements + scale
    case .int4, .int4Clipped: return elements / 2 + scale
    case .int4Progressive(let tokens, let channels):
      return elements / 2 + scale
        + 2 * (elements / Double(channels)).rounded(.up) / Double(tokens)
    }
  }
}
