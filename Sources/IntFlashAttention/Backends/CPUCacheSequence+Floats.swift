internal import CAttentionKernels

extension CPUCacheSequence {
  /// Stores positions `range` as floats; `firstPosition` is that of the first of `tokens`.
  func appendFloats(
    _ tokens: KVCacheTokens,
    firstPosition: Int,
    _ range: Range<Int>,
    _ units: [Int32]
  ) {
    let length = KVCacheLayout.unitLength
    let heads = store.layout.keyValueHeadCount
    let firstUnit = range.lowerBound / length
    let unitCount = CPUTileSizes.pieceCount(range.upperBound, length) - firstUnit
    let elements = range.count * heads * (store.layout.headDimension + store.layout.valueDimension)
    let threads = min(max(elements / 100_000, 1), store.threadCount)
    ThreadPool.shared.run(itemCount: heads * unitCount, threads: threads) { item, _ in
      let (head, index) = item.quotientAndRemainder(dividingBy: unitCount)
      let unit = firstUnit + index
      let part = range.clamped(to: unit * length..<(unit + 1) * length)
      let from = part.lowerBound - firstPosition
      unsafe store.storeKeys(
        CPUSurvey.rows(tokens.key, head: head, from: from),
        part,
        tokens.keyRotary(from: from),
        into: store.keyUnit(head, units[unit])
      )
      unsafe store.storeFloats(
        CPUSurvey.rows(tokens.value, head: head, from: from),
        part,
        isKey: false,
        into: store.valueUnit(head, units[unit])
      )
    }
  }
}

extension CPUCacheStore {
  /// Stores positions of one unit, whose rows are the first of `rows`, turned by `rotary`.
  func storeKeys(
    _ rows: intfa_rows,
    _ positions: Range<Int>,
    _ rotary: CPURotary?,
    into unit: UnsafeMutableRawPointer
  ) {
    guard let rotary else {
      unsafe storeFloats(rows, positions, isKey: true, into: unit)
      return
    }
    let dimension = layout.headDimension
    var turned = [Float](repeating: 0, count: positions.count * dimension)
    unsafe turned.withUnsafeMutableBufferPointer { turned in
      guard let target = turned.baseAddress else { return }
      unsafe storeFloats(
        rotary.loaded(
          rows,
          count: positions.count,
          dimension: dimension,
          into: target,
          kernels
        ),
        positions,
        isKey: true,
        into: unit
      )
    }
  }

  /// Stores positions of one unit, whose rows are the first of `rows`.
  func storeFloats(
    _ rows: intfa_rows,
    _ positions: Range<Int>,
    isKey: Bool,
    into unit: UnsafeMutableRawPointer
  ) {
    guard let formats = method.runningFormats else { return }
    let length = KVCacheLayout.unitLength
    let places = isKey ? keyPlaces : valuePlaces
    if positions.count == length {
      var arguments = unsafe intfa_pack_running()
      unsafe arguments.formats = formats
      unsafe arguments.rows = rows
      unsafe arguments.multiplier = 1
      unsafe arguments.end = Int64(length)
      unsafe arguments.dimension = Int32(places.dimension)
      unsafe arguments.target = unit
      unsafe isKey ? kernels.pack_running_keys(&arguments) : kernels.pack_running_values(&arguments)
      return
    }
    let token = positions.lowerBound % length
    if token == 0 { unsafe places.clear(unit) }
    var floats = [Float](repeating: 0, count: positions.count * places.dimension)
    unsafe floats.withUnsafeMutableBufferPointer { floats in
      var rows = unsafe rows
      let format = isKey ? formats.score : formats.value
      guard let base = floats.baseAddress else { return }
      unsafe intfa_load_rows(
        &rows,
        0,
        Int64(positions.count),
        Int32(places.dimension),
        1,
        format,
        base
      )
      unsafe places.scatter(base, token: token, count: positions.count, into: unit)
    }
  }
}
