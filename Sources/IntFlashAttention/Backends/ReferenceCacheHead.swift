/// Tokens of one key/value head as a cache keeps them, token by token: the definition of the streaming
/// form of a recipe.
///
/// The first 64 tokens are kept as they came. When they are complete they give the statistics: the mean
/// of the keys and the unit of the values' scales. Then every token is quantised by these when it comes.
/// Four-bit formats are rounded once more when a tile is complete, and what was lost stays lost: 64 tokens
/// that are in four bits stay as they are, also where a cut tile is completed again.
struct ReferenceCacheHead: Sendable {
  private let recipe: QuantizationRecipe
  private let headDimension: Int
  private let valueDimension: Int
  private(set) var count = 0

  /// The tokens as they came: the first 64 where recipes have codes, else all.
  private(set) var keys: [Float] = []
  private(set) var values: [Float] = []
  /// Whether the statistics are taken.
  private var isFrozen = false
  /// What is taken out of the keys.
  private(set) var mean: [Float]
  /// The scale of n = 1 of the values.
  private(set) var unit: Float = 1

  private(set) var keyCodes: [Float] = []
  private(set) var keyScales: [Float] = []
  private(set) var valueCodes: [Float] = []
  /// n per token: its value's scale is unit / n.
  private(set) var reciprocals: [Float] = []
  /// The first token of each tile whose value is far larger than those that the unit is from.
  private(set) var outliers: [Int] = []
  /// Tokens before this, a multiple of 64, are in four bits where the recipe has them.
  private var roundedCount = 0

  init(_ layout: KVCacheLayout) {
    recipe = layout.recipe
    headDimension = layout.headDimension
    valueDimension = layout.valueDimension
    mean = [Float](repeating: 0, count: layout.headDimension)
  }

  /// Whether tokens are stored as codes with statistics of the first 64.
  static func hasCodes(_ recipe: QuantizationRecipe) -> Bool { recipe.rowSum == .automatic }

  /// Tokens that a row is computed from as they came where it sees no others.
  static let exactLength = KVCacheLayout.unitLength

  // MARK: Append

  /// Stores tokens; rows of D and Dv.
  mutating func append(key: HeadRows, value: HeadRows) {
    for token in 0..<key.count {
      append(key: Array(key.row(token)), value: Array(value.row(token)))
    }
  }

  private mutating func append(key: [Float], value: [Float]) {
    let position = count
    count += 1
    guard Self.hasCodes(recipe) else {
      keys += key
      values += value
      return
    }
    if position < Self.exactLength {
      keys += key
      values += value
      if count == Self.exactLength { freeze() }
    } else {
      quantize(key: key, value: value, position)
    }
    let start = recipe.tileStart(of: position, tileLength: recipe.tileLength)
    let length = start == 0 ? recipe.firstTileLength : recipe.tileLength
    if count == start + length {
      close(max(start, roundedCount)..<count)
      roundedCount = count
    }
  }

  /// Takes the statistics from the first tokens, and quantises them.
  private mutating func freeze() {
    isFrozen = true
    let rows = HeadRows(count: Self.exactLength, dimension: headDimension, values: keys)
    if recipe.centersKey { mean = rows.mean() }
    var rotated = HeadRows(count: Self.exactLength, dimension: valueDimension, values: values)
    if recipe.rotatesValue { rotated.rotate() }
    unit = FoldedValueScales(maxima: rotated.rowMaxima(), integers: true).unit
    let value = HeadRows(count: Self.exactLength, dimension: valueDimension, values: values)
    for token in 0..<Self.exactLength {
      quantize(key: Array(rows.row(token)), value: Array(value.row(token)), token)
    }
  }

  private mutating func quantize(key: [Float], value: [Float], _ position: Int) {
    var k = HeadRows(count: 1, dimension: headDimension, values: key)
    k.subtract(mean)
    if recipe.rotatesQueryAndKey { k.rotate() }
    let key = HeadCodes(k, .int8(.token))
    keyCodes += key.codes
    keyScales.append(key.rowScales[0])

    var v = HeadRows(count: 1, dimension: valueDimension, values: value)
    if recipe.rotatesValue { v.rotate() }
    let maximum = max(v.largest(), HeadCodes.smallestMaximum)
    var n = 127 * unit / maximum
    if n >= 1 { n = min(n, 127).rounded(.down) }
    valueCodes += HeadCodes(v, .int8(.token), multipliers: [n / unit]).codes
    reciprocals.append(n)

    // The unit is an eighth of the mean.
    let limit = FoldedValueScales.outlierLimit * FoldedValueScales.floorDivisor * unit
    let start = recipe.tileStart(of: position, tileLength: recipe.tileLength)
    if maximum > limit, (outliers.last ?? -1) < start { outliers.append(position) }
  }

  /// Rounds the codes of a complete tile to four bits where the recipe has them.
  private mutating func close(_ tile: Range<Int>) {
    keyCodes.replaceSubrange(
      tile.lowerBound * headDimension..<tile.upperBound * headDimension,
      with: closed(keyCodes, tile, headDimension, recipe.key)
    )
    valueCodes.replaceSubrange(
      tile.lowerBound * valueDimension..<tile.upperBound * valueDimension,
      with: closed(valueCodes, tile, valueDimension, recipe.value)
    )
  }

  private func closed(
    _ codes: [Float],
    _ tile: Range<Int>,
    _ dimension: Int,
    _ format: OperandFormat
  ) -> [Float] {
    let part = Array(codes[tile.lowerBound * dimension..<tile.upperBound * dimension])
    guard case .int4Progressive = format else { return part }
    return HeadCodes(
      HeadRows(count: tile.count, dimension: dimension, values: part),
      format,
      multipliers: [Float](repeating: 1, count: tile.count)
    ).codes
  }

  // MARK: Truncate

  /// Forgets all but the first `count` tokens; below 64 the statistics are taken anew.
  mutating func truncate(to count: Int) {
    self.count = count
    let kept = Self.hasCodes(recipe) ? min(count, Self.exactLength) : count
    keys.removeLast(max(keys.count - kept * headDimension, 0))
    values.removeLast(max(values.count - kept * valueDimension, 0))
    if isFrozen, count < Self.exactLength { isFrozen = false }
    let codes = isFrozen ? count : 0
    keyCodes.removeLast(max(keyCodes.count - codes * headDimension, 0))
    valueCodes.removeLast(max(valueCodes.count - codes * valueDimension, 0))
    keyScales.removeLast(max(keyScales.count - codes, 0))
    reciprocals.removeLast(max(reciprocals.count - codes, 0))
    outliers.removeAll { $0 >= codes }
    roundedCount = min(roundedCount, codes / KVCacheLayout.unitLength * KVCacheLayout.unitLength)
  }
}
