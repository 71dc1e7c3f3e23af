internal import CAttentionKernels

/// The first tokens of a sequence as they came, in float32, and the statistics that are taken from
/// them: the mean of the keys and the unit of the scales of the values.
///
/// Shared by forks until one of them changes it.
@safe
final class CPUFirstTile {
  static let length = KVCacheLayout.unitLength

  let memory: CPUMemory
  var isFrozen = false
  private let layout: KVCacheLayout
  private let keys: CPUMemory.Region  // [Hkv][64][D] float
  private let values: CPUMemory.Region  // [Hkv][64][Dv] float
  private let means: CPUMemory.Region  // [Hkv][D] float
  private let units: CPUMemory.Region  // [Hkv] float

  init(_ layout: KVCacheLayout) {
    self.layout = layout
    let (heads, float) = (layout.keyValueHeadCount, MemoryLayout<Float>.size)
    var memory = CPUMemory.Layout()
    keys = memory.take(float * Self.length * layout.headDimension, parts: heads)
    values = memory.take(float * Self.length * layout.valueDimension, parts: heads)
    means = memory.take(float * layout.headDimension, parts: heads)
    units = memory.take(float * heads)
    self.memory = CPUMemory.required(memory, zeroed: false)
  }

  func copy() -> CPUFirstTile {
    let copy = CPUFirstTile(layout)
    copy.memory.copyBytes(from: memory)
    copy.isFrozen = isFrozen
    return copy
  }

  func keyRows(_ head: Int) -> UnsafeMutablePointer<Float> { unsafe memory.place(keys, head) }
  func valueRows(_ head: Int) -> UnsafeMutablePointer<Float> { unsafe memory.place(values, head) }
  func keyMean(_ head: Int) -> UnsafeMutablePointer<Float> { unsafe memory.place(means, head) }
  /// The scale of n = 1 of a head's values.
  func valueUnit(_ head: Int) -> Float { unsafe memory.place(units)[head] }

  /// The rows as new tokens of a sequence.
  var tokens: KVCacheTokens {
    KVCacheTokens(
      key: operand(keys, layout.headDimension),
      value: operand(values, layout.valueDimension)
    )
  }

  private func operand(_ region: CPUMemory.Region, _ dimension: Int) -> AttentionOperands.Operand {
    let float = MemoryLayout<Float>.size
    return AttentionOperands.Operand(
      unsafe TensorView(
        unsafeBase: UnsafeRawPointer(memory.place(region)),
        elementType: .float32,
        shape: [1, layout.keyValueHeadCount, Self.length, dimension],
        strides: [0, region.stride / float, dimension, 1]
      )
    )
  }

  /// Takes positions `range` from the first rows of `tokens`.
  func keep(_ tokens: KVCacheTokens, _ range: Range<Int>, _ kernels: intfa_cpu_kernels) {
    for head in 0..<layout.keyValueHeadCount {
      if let rotary = tokens.keyRotary(from: 0) {
        unsafe rotary.load(
          CPUSurvey.rows(tokens.key, head: head, from: 0),
          count: range.count,
          dimension: layout.headDimension,
          into: keyRows(head) + range.lowerBound * layout.headDimension,
          kernels
        )
      }
      for (operand, region) in [(tokens.key, keys), (tokens.value, values)]
      where tokens.rotary == nil || region.offset != keys.offset {
        let dimension = operand.shape[3]
        var rows = unsafe CPUSurvey.rows(operand, head: head, from: 0)
        unsafe intfa_load_rows(
          &rows,
          0,
          Int64(range.count),
          Int32(dimension),
          1,
          INTFA_FLOAT32,
          memory.place(region, head) + range.lowerBound * dimension
        )
      }
    }
  }

  /// Takes the statistics from the full tile.
  func freeze(_ store: CPUCacheStore) {
    let recipe = layout.recipe
    let dimension = layout.headDimension
    for head in 0..<layout.keyValueHeadCount {
      let (mean, rows) = unsafe (keyMean(head), keyRows(head))
      for channel in 0..<dimension {
        var sum: Float = 0
        for token in 0..<Self.length { sum += unsafe rows[token * dimension + channel] }
        unsafe mean[channel] = recipe.centersKey ? sum / Float(Self.length) : 0
      }
      unsafe memory.place(units)[head] = findUnit(head, store)
    }
    isFrozen = true
  }

  private func findUnit(_ head: Int, _ store: CPUCacheStore) -> Float {
    var maxima = [Float](repeating: 0, count: Self.length)
    var firstBad: Int64 = -1
    unsafe maxima.withUnsafeMutableBufferPointer { maxima in
      var survey = unsafe intfa_survey()
      unsafe survey.rows = intfa_rows(
        base: valueRows(head),
        stride: Int64(layout.valueDimension),
        format: INTFA_FLOAT32
      )
      unsafe survey.end = Int64(Self.length)
      unsafe survey.dimension = Int32(layout.valueDimension)
      unsafe survey.limit = .infinity
      unsafe survey.first_bad = withUnsafeMutablePointer(to: &firstBad) { unsafe $0 }
      unsafe survey.rotates = layout.recipe.rotatesValue
      unsafe survey.row_maxima = maxima.baseAddress
      unsafe store.kernels.survey(&survey)
    }
    return FoldedValueScales(maxima: maxima, integers: true).unit
  }
}

extension CPUMemory {
  /// Small memory of a sequence or a call, without which nothing works.
  static func required(_ layout: Layout, zeroed: Bool) -> CPUMemory {
    guard let memory = CPUMemory(layout, zeroed: zeroed) else {
      preconditionFailure("no memory for \(layout.byteCount) bytes")
    }
    return memory
  }
}
