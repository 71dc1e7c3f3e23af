/// One head in an operand format: value = code · scale.
///
/// The plain Swift definition of every ``OperandFormat``.
package struct HeadCodes: Sendable {
  package let count: Int
  package let dimension: Int
  /// Integers, or floats that the format can hold; row-major.
  package var codes: [Float]
  /// One per row.
  package var rowScales: [Float]
  /// One per channel; nil where channels do not have scales of their own.
  package var channelScales: [Float]?

  /// The smallest maximum that a scale is derived from: a row of zeros gets codes 0.
  package static let smallestMaximum: Float = 0x1p-100

  /// Quantises; `multipliers` replaces 127 / max|row| for INT8 per token (folded V scales).
  package init(_ rows: HeadRows, _ format: OperandFormat, multipliers: [Float]? = nil) {
    count = rows.count
    dimension = rows.dimension
    codes = rows.values
    rowScales = [Float](repeating: 1, count: rows.count)
    switch format {
    case .float32: break
    case .bfloat16: for index in codes.indices { codes[index] = BFloat16(codes[index]).float }
    case .float16: for index in codes.indices { codes[index] = Half.rounded(codes[index]) }
    case .float8(let granularity):
      scale(by: granularity, levels: format.levels)
      for index in codes.indices { codes[index] = Float8(codes[index]).float }
    case .int8(let granularity), .int4(let granularity):
      scale(by: granularity, levels: format.levels, multipliers: multipliers)
      round(to: -format.levels...format.levels)
    case .int4Clipped: quantizeClipped(rows)
    case .int4Progressive(let tokens, let channels):
      scale(by: .token, levels: format.levels, multipliers: multipliers)
      round(to: -127...127)
      regroup(tokens: tokens, channels: channels)
    }
  }

  private mutating func round(to range: ClosedRange<Float>) {
    for index in codes.indices {
      codes[index] = min(
        max(codes[index].rounded(.toNearestOrEven), range.lowerBound),
        range.upperBound
      )
    }
  }

  private func largest(rows: Range<Int>, channels: Range<Int>) -> Float {
    var result = Self.smallestMaximum
    for row in rows {
      for channel in channels { result = max(result, codes[row * dimension + channel].magnitude) }
    }
    return result
  }

  private mutating func multiply(rows: Range<Int>, channels: Range<Int>, by factor: Float) {
    for row in rows {
      for channel in channels { codes[row * dimension + channel] *= factor }
    }
  }

  /// Divides by the scale of each group without rounding, and notes the scales.
  private mutating func scale(
    by granularity: ScaleGranularity,
    levels: Float,
    multipliers: [Float]? = nil
  ) {
    let allRows = 0..<count
    let allChannels = 0..<dimension
    if let multipliers {
      for row in allRows {
        multiply(rows: row..<row + 1, channels: allChannels, by: multipliers[row])
        rowScales[row] = 1 / multipliers[row]
      }
      return
    }
    if granularity == .channel {
      var scales: [Float] = []
      for channel in allChannels {
        let largest = largest(rows: allRows, channels: channel..<channel + 1)
        multiply(rows: allRows, channels: channel..<channel + 1, by: levels / largest)
        scales.append(largest / levels)
      }
      channelScales = scales
      return
    }
    let length =
      switch granularity {
      case .token, .channel: 1
      case .block(let length): length
      case .tensor: max(count, 1)
      }
    var begin = 0
    while begin < count {
      let rows = begin..<(count - begin > length ? begin + length : count)
      let largest = largest(rows: rows, channels: allChannels)
      multiply(rows: rows, channels: allChannels, by: levels / largest)
      for row in rows { rowScales[row] = largest / levels }
      begin = rows.upperBound
    }
  }

  private mutating func quantizeClipped(_ rows: HeadRows) {
    for row in 0..<count {
      let values = rows.row(row)
      let largest = max(values.reduce(0) { max($0, $1.magnitude) }, Self.smallestMaximum)
      var best = Float.infinity
      for shrink: Float in [1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7] {
        let scale = largest / 7 * shrink
        let candidate = values.map { min(max(($0 / scale).rounded(.toNearestOrEven), -8), 7) }
        let error = zip(candidate, values).reduce(Float(0)) { sum, pair in
          let difference = pair.0 * scale - pair.1
          return sum + difference * difference
        }
        guard error < best else { continue }
        best = error
        rowScales[row] = scale
        for (channel, code) in candidate.enumerated() { codes[row * dimension + channel] = code }
      }
    }
  }

  private mutating func regroup(tokens: Int, channels: Int) {
    for row in stride(from: 0, to: count, by: tokens) {
      for channel in stride(from: 0, to: dimension, by: channels) {
        regroup(
          rows: row..<min(row + tokens, count),
          channels: channel..<min(channel + channels, dimension)
        )
      }
    }
  }

  private mutating func regroup(rows: Range<Int>, channels: Range<Int>) {
    var indices: [Int] = []
    for row in rows { indices += channels.map { row * dimension + $0 } }
    let group = ProgressiveGroup(codes: indices.map { codes[$0] })
    for index in indices { codes[index] = group.decoded(group.encoded(codes[index])) }
  }

  /// The values that the codes stand for.
  package func dequantized() -> HeadRows {
    var values = codes
    for row in 0..<count {
      for channel in 0..<dimension {
        values[row * dimension + channel] *= rowScales[row] * (channelScales?[channel] ?? 1)
      }
    }
    return HeadRows(count: count, dimension: dimension, values: values)
  }
}

/// The step and offset of one group of progressive 4-bit codes.
package struct ProgressiveGroup: Hashable, Sendable {
  /// 1…17.
  package let step: Float
  /// The smallest INT8 code of the group.
  package let offset: Float

  package init(codes: some Sequence<Float>) {
    var low: Float = 127
    var high: Float = -127
    for code in codes {
      low = min(low, code)
      high = max(high, code)
    }
    offset = low
    step = max(1, ((high - low) / 15).rounded(.up))
  }

  package init(step: Float, offset: Float) {
    self.step = step
    self.offset = offset
  }

  /// 0…15.
  package func encoded(_ code: Float) -> Float {
    min(max(((code - offset) / step).rounded(.toNearestOrEven), 0), 15)
  }

  /// The INT8 code that a 4-bit code stands for.
  package func decoded(_ code: Float) -> Float {
    min(max(code * step + offset, -127), 127)
  }
}
