#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// One query head in the terms of its recipe, and attention of one of its rows.
///
/// The letters are those of the accuracy article: S logits in powers of two, t maximum of a tile,
/// m running maximum, l denominator, acc numerator.
struct ReferenceHead: Sendable {
  struct Result {
    let output: [Double]
    let logSumExp: Double
  }

  private let descriptor: AttentionDescriptor
  private let query: [Double]
  private let queryScale: [Double]
  private let key: [Double]
  private let keyScale: [Double]
  private let value: [Double]
  /// Per block of query rows that share a mean: what the part taken out adds to each key's logit.
  private let centringBias: [[Double]]
  private let rowsPerMean: Int
  /// log2 of the folded V scale, added to the logit, and what the row sum is weighted with.
  private let fold: [Double]
  private let weight: [Double]
  private let sumsCodes: Bool
  private let tileLength: Int
  /// Positions of values far larger than the others, one per tile of a cache.
  ///
  /// A row that sees one takes its tile as a head with an outlier has all tiles.
  private let outliers: [Int]
  /// What the output is multiplied by, per channel.
  private let outputScale: [Double]
  /// Scale · log2(e) · q · kbar per row: the part of the logits that centring the keys took out.
  private let rowShift: [Double]
  private let mask: ReferenceMask

  init(
    _ descriptor: AttentionDescriptor,
    query q: HeadRows,
    key k: HeadRows,
    value v: HeadRows,
    mask: ReferenceMask
  ) {
    let recipe = descriptor.recipe
    let unit = Double(descriptor.softmaxScale) * log2(M_E)
    self.descriptor = descriptor
    self.mask = mask
    var (q, k, v) = (q, k, v)

    if recipe.centersKey {
      let mean = k.mean()
      rowShift = (0..<q.count).map { row in
        unit * zip(mean, q.row(row)).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
      }
      k.subtract(mean)
    } else {
      rowShift = [Double](repeating: 0, count: q.count)
    }
    let rotation = HadamardRotation(dimension: k.dimension)
    if recipe.rotatesQueryAndKey { k.rotate() }
    let productUnit = recipe.rotatesQueryAndKey ? unit / Double(rotation.blockLength) : unit

    switch recipe.queryCentering {
    case .none: rowsPerMean = max(q.count, 1)
    case .head: rowsPerMean = max(q.count, 1)
    case .block(let rows): rowsPerMean = rows
    }
    var biases: [[Double]] = []
    for begin in stride(from: 0, to: q.count, by: rowsPerMean) {
      guard recipe.queryCentering != .none else {
        biases.append([Double](repeating: 0, count: k.count))
        break
      }
      let rows = begin..<min(begin + rowsPerMean, q.count)
      var mean = q.mean(ofRows: rows)
      q.subtract(mean, fromRows: rows)
      if recipe.rotatesQueryAndKey { rotation.applyUnnormalized(&mean) }
      biases.append((0..<k.count).map { productUnit * Double(HeadRows.dot(mean, k.row($0))) })
    }
    centringBias = biases
    if recipe.rotatesQueryAndKey { q.rotate() }

    let queryCodes = HeadCodes(q, recipe.query)
    let keyCodes = HeadCodes(k, recipe.key)
    query = queryCodes.codes.map(Double.init)
    queryScale = queryCodes.rowScales.map { Double($0) * productUnit }
    key = keyCodes.codes.map(Double.init)
    keyScale = keyCodes.rowScales.map(Double.init)

    if recipe.rotatesValue { v.rotate() }
    let undoRotation = recipe.rotatesValue ? 1 / Double(v.dimension & -v.dimension) : 1
    var sumsCodes = recipe.rowSum == .codes
    var hasOutlier = false
    switch (recipe.valueScale, recipe.rowSum) {
    case (.output, _):
      let codes = HeadCodes(v, recipe.value)
      value = codes.codes.map(Double.init)
      fold = [Double](repeating: 0, count: v.count)
      weight = [Double](repeating: 1, count: v.count)
      let headScale = Double(codes.rowScales.first ?? 1) * undoRotation
      outputScale = (0..<v.dimension).map { headScale * Double(codes.channelScales?[$0] ?? 1) }
    case (.folded, .codes), (.folded, .exact), (.foldedReciprocal, .codes),
      (.foldedReciprocal, .exact):
      let scales = v.rowMaxima().map { max($0, HeadCodes.smallestMaximum) / 127 }
      let floor = scales.reduce(0, +) / Float(max(scales.count, 1)) / FoldedValueScales.floorDivisor
      let folded = scales.map { max($0, floor) }
      value = HeadCodes(v, recipe.value, multipliers: folded.map { 1 / $0 }).codes.map(Double.init)
      fold = folded.map { log2(Double($0)) }
      weight = folded.map { 1 / Double($0) }
      outputScale = [Double](repeating: undoRotation, count: v.dimension)
    case (.folded, .automatic), (.foldedReciprocal, .automatic):
      let scales = FoldedValueScales(
        maxima: v.rowMaxima(),
        integers: recipe.valueScale == .foldedReciprocal
      )
      let multipliers = (0..<v.count).map(scales.multiplier)
      value = HeadCodes(v, recipe.value, multipliers: multipliers).codes.map(Double.init)
      fold = scales.reciprocals.map { -log2(Double($0)) }
      weight = scales.reciprocals.map(Double.init)
      outputScale = [Double](repeating: Double(scales.unit) * undoRotation, count: v.dimension)
      hasOutlier = scales.hasOutlier
      sumsCodes = !hasOutlier
    }
    tileLength = recipe.tileLength(hasOutlier: hasOutlier)
    self.sumsCodes = sumsCodes
    outliers = []
  }

  /// Queries against tokens that a cache has as codes.
  init(
    _ descriptor: AttentionDescriptor,
    query q: HeadRows,
    cached tokens: ReferenceCacheHead,
    mask: ReferenceMask
  ) {
    let recipe = descriptor.recipe
    let unit = Double(descriptor.softmaxScale) * log2(M_E)
    self.descriptor = descriptor
    self.mask = mask
    rowShift = (0..<q.count).map { row in
      unit * zip(tokens.mean, q.row(row)).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
    }
    rowsPerMean = max(q.count, 1)
    centringBias = [[Double](repeating: 0, count: tokens.count)]
    var q = q
    if recipe.rotatesQueryAndKey { q.rotate() }
    let block =
      recipe.rotatesQueryAndKey ? HadamardRotation(dimension: q.dimension).blockLength : 1
    let queryCodes = HeadCodes(q, recipe.query)
    query = queryCodes.codes.map(Double.init)
    queryScale = queryCodes.rowScales.map { Double($0) * unit / Double(block) }
    key = tokens.keyCodes.map(Double.init)
    keyScale = tokens.keyScales.map(Double.init)
    value = tokens.valueCodes.map(Double.init)
    fold = tokens.reciprocals.map { -log2(Double($0)) }
    weight = tokens.reciprocals.map(Double.init)
    let dimension = descriptor.shape.valueDimension
    let undoRotation = recipe.rotatesValue ? 1 / Double(dimension & -dimension) : 1
    outputScale = [Double](repeating: Double(tokens.unit) * undoRotation, count: dimension)
    sumsCodes = true
    tileLength = recipe.tileLength
    outliers = tokens.outliers
  }

  /// Attention of one query row over the keys that it sees.
  func attend(row: Int) -> Result {
    let (shape, recipe) = (descriptor.shape, descriptor.recipe)
    let visible = descriptor.options.mask.visibleKeys(
      row: row,
      queryLength: shape.queryLength,
      keyValueLength: shape.keyValueLength
    )
    let seenEnd = refinedEnd(row)
    var total = Partial(dimension: shape.valueDimension)
    var spanIndex = 0
    while let span = recipe.span(spanIndex, keyValueLength: shape.keyValueLength) {
      var partial = Partial(dimension: shape.valueDimension)
      var begin = span.lowerBound
      while begin < span.upperBound {
        let length = begin == 0 ? recipe.firstTileLength : tileLength
        let end = min(begin + length, span.upperBound)
        let seen = visible.clamped(to: begin..<end)
        if outliers.contains(where: { (begin..<end).contains($0) && $0 < visible.upperBound }) {
          let part = FoldedValueScales.outlierTileLength
          for start in stride(from: begin, to: end, by: part) {
            let piece = seen.clamped(to: start..<min(start + part, end))
            let tile = start..<start + part
            accumulate(
              row,
              piece,
              sumsCodes: false,
              refined: tile.ends(at: seenEnd),
              into: &partial
            )
          }
        } else {
          let isLast = (begin..<begin + length).ends(at: seenEnd)
          accumulate(row, seen, sumsCodes: sumsCodes, refined: isLast, into: &partial)
        }
        begin = end
      }
      total.merge(partial)
      spanIndex += 1
    }
    // A cap sees the shift itself, so that the logits are already the unshifted ones.
    let shift = descriptor.options.softcap == nil ? rowShift[row] : 0
    if mask.sink > -.infinity {
      var sink = Partial(dimension: shape.valueDimension)
      (sink.m, sink.l) = (mask.sink * log2(M_E) - shift, 1)
      total.merge(sink)
    }
    guard total.l > 0 else {
      return Result(
        output: [Double](repeating: 0, count: shape.valueDimension),
        logSumExp: -.infinity
      )
    }
    var output = zip(total.acc, outputScale).map { $0 / total.l * $1 }
    if recipe.rotatesValue { Self.rotate(&output) }
    return Result(output: output, logSumExp: (total.m + log2(total.l) + shift) * M_LN2)
  }

  /// Numerator and denominator of some tiles, relative to 2^m; both in units where p is 0…1.
  private struct Partial {
    var m = -1e30
    var l = 0.0
    var acc: [Double]

    init(dimension: Int) { acc = [Double](repeating: 0, count: dimension) }

    mutating func rescale(to reference: Double) {
      let factor = exp2(m - reference)
      l *= factor
      for channel in acc.indices { acc[channel] *= factor }
      m = reference
    }

    mutating func merge(_ other: Partial) {
      rescale(to: max(m, other.m))
      let factor = exp2(other.m - m)
      l += other.l * factor
      for channel in acc.indices { acc[channel] += other.acc[channel] * factor }
    }
  }

  /// Where the row's mask ends, if P has sixteen bits in that tile.
  private func refinedEnd(_ row: Int) -> Int? {
    let seen = descriptor.options.mask.visibility(
      queryLength: descriptor.shape.queryLength,
      keyValueLength: descriptor.shape.keyValueLength
    )
    guard descriptor.recipe.refinesLastTile, seen.step > 0 else { return nil }
    return max(seen.end + row * seen.step, seen.leastEnd)
  }

  /// nil where the mask hides the key.
  private func logit(_ row: Int, _ column: Int) -> Double? {
    guard let addend = mask.addend(row: row, key: column) else { return nil }
    let dimension = descriptor.shape.headDimension
    let (q, k) = (query.span, key.span)
    var product = 0.0
    for channel in 0..<dimension {
      product += q[row * dimension + channel] * k[column * dimension + channel]
    }
    var logit = product * queryScale[row] * keyScale[column]
    logit += centringBias[row / rowsPerMean][column]
    if let softcap = descriptor.options.softcap {
      let cap = Double(softcap) * log2(M_E)
      logit = cap * tanh((logit + rowShift[row]) / cap)
    }
    return logit + fold[column] + addend
  }

  private func accumulate(
    _ row: Int,
    _ seen: Range<Int>,
    sumsCodes: Bool,
    refined: Bool,
    into partial: inout Partial
  ) {
    let recipe = descriptor.recipe
    let dimension = descriptor.shape.valueDimension
    let logits = seen.compactMap { column in logit(row, column).map { (column, $0) } }
    guard let top = logits.map(\.1).max() else { return }
    partial.rescale(to: max(partial.m, recipe.hasWholeReference ? top.rounded(.up) : top))
    let reference = recipe.reference == .tileMaximum ? top : partial.m
    let gain = exp2(reference - partial.m)
    let v = value.span
    for (column, logit) in logits {
      let (exact, rounded) = probability(logit - reference, refined: refined)
      partial.l += gain * (sumsCodes ? rounded : exact) * weight[column]
      guard rounded != 0 else { continue }
      for channel in 0..<dimension {
        partial.acc[channel] += gain * rounded * v[column * dimension + channel]
      }
    }
  }

  /// 2^x as the row sum takes it where that is exact, and rounded as it multiplies V.
  private func probability(_ x: Double, refined: Bool) -> (exact: Double, rounded: Double) {
    if descriptor.recipe.exponential == .table64 {
      let steps = min((-64 * x).rounded(.toNearestOrEven), 2047)
      let mantissa = (65280 * exp2(-Double(Int(steps) & 63) / 64)).rounded()
      let power = Int(mantissa) >> (Int(steps) >> 6)
      let rounded = refined ? Double(power) / 256 : Double((power + 128) >> 8)
      return (exp2(-steps / 64), rounded / 255)
    }
    let p = exp2(x)
    switch descriptor.recipe.probability {
    case .unsigned8:
      let levels: Double = refined ? 65280 : 255
      return (p, (levels * p + 0.5).rounded(.down) / levels)
    case .signed8: return (p, (127 * p + 0.5).rounded(.down) / 127)
    case .float16: return (p, Double(Half.rounded(Float(p))))
    case .bfloat16: return (p, Double(BFloat16(Float(p)).float))
    case .float8: return (p, Double(Float8(Float(256 * p)).float) / 256)
    case .float32: return (p, p)
    }
  }

  private static func rotate(_ row: inout [Double]) {
    let block = row.count & -row.count
    var stride = 1
    while stride < block {
      for index in row.indices where index & stride == 0 {
        let (a, b) = (row[index], row[index + stride])
        row[index] = a + b
        row[index + stride] = a - b
      }
      stride *= 2
    }
  }
}

extension Range<Int> {
  /// Whether the last key before `end` is one of these.
  fileprivate func ends(at end: Int?) -> Bool {
    end.map { lowerBound < $0 && $0 <= upperBound } ?? false
  }
}
