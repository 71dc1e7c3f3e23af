internal import CAttentionKernels

/// Memory in which tokens become codes before they are packed.
@safe
final class CPUCacheStaging: @unchecked Sendable {
  // Sendable: each thread has a seat.
  let memory: CPUMemory
  let keyCodes: CPUMemory.Region  // [tile][D] int8
  let valueCodes: CPUMemory.Region  // [tile][Dv] int8
  let keyScales: CPUMemory.Region  // [tile] float
  let maxima: CPUMemory.Region  // [tile] float
  let multipliers: CPUMemory.Region  // [tile] float
  let folds: CPUMemory.Region  // [tile] float
  let realWeights: CPUMemory.Region  // [tile] float
  let weights: CPUMemory.Region  // [tile] int8
  let turnedKeys: CPUMemory.Region  // [tile][D] float; empty where nothing turns them

  init(_ layout: KVCacheLayout, seats: Int, turnsKeys: Bool) {
    let tile = max(layout.recipe.tileLength, layout.recipe.firstTileLength)
    var memory = CPUMemory.Layout()
    keyCodes = memory.take(tile * layout.headDimension, parts: seats)
    valueCodes = memory.take(tile * layout.valueDimension, parts: seats)
    let floats = MemoryLayout<Float>.size * tile
    keyScales = memory.take(floats, parts: seats)
    maxima = memory.take(floats, parts: seats)
    multipliers = memory.take(floats, parts: seats)
    folds = memory.take(floats, parts: seats)
    realWeights = memory.take(floats, parts: seats)
    weights = memory.take(tile, parts: seats)
    turnedKeys = memory.take(turnsKeys ? floats * layout.headDimension : 0, parts: seats)
    self.memory = CPUMemory.required(memory, zeroed: false)
  }

  func place<T>(_ region: CPUMemory.Region, _ seat: Int, as type: T.Type = Float.self)
    -> UnsafeMutablePointer<T>
  {
    unsafe memory.place(region, seat, as: type)
  }
}

/// Quantises tokens of one head that are in one tile, and stores them.
struct CPUTileWriter {
  let store: CPUCacheStore
  let first: CPUFirstTile
  /// The tile in 8 bits, where it is to be open.
  let open: CPUOpenTile?
  let staging: CPUCacheStaging
  let seat: Int
  let head: Int
  let tile: Range<Int>
  let units: [Int32]
  /// Whether the tile has an outlier already.
  let isFlagged: Bool

  private var layout: KVCacheLayout { store.layout }
  private var recipe: QuantizationRecipe { store.layout.recipe }

  /// Stores positions `part`, whose rows are the first of `key`, turned by `rotary`, and of `value`.
  ///
  /// - Returns: the first position with an outlier among the values, or -1.
  func write(
    _ part: Range<Int>,
    key: intfa_rows,
    value: intfa_rows,
    rotary: CPURotary?
  ) -> Int {
    let key =
      unsafe rotary?.loaded(
        key,
        count: part.count,
        dimension: layout.headDimension,
        into: staging.place(staging.turnedKeys, seat),
        store.kernels
      ) ?? key
    let outlier = unsafe quantize(part.count, key: key, value: value)
    if outlier >= 0, !isFlagged { flag(upTo: part.lowerBound) }
    let isReal = isFlagged || outlier >= 0
    var begin = part.lowerBound
    while begin < part.upperBound {
      let unitStart = begin - begin % KVCacheLayout.unitLength
      let end = min(unitStart + KVCacheLayout.unitLength, part.upperBound)
      storeArrays(begin..<end, from: begin - part.lowerBound, isReal: isReal)
      storeCodes(begin..<end, from: begin - part.lowerBound)
      begin = end
    }
    if let open, part.upperBound == tile.upperBound { close(open) }
    return outlier < 0 ? -1 : part.lowerBound + outlier
  }

  // MARK: Quantise

  /// Returns the index of the first outlier, or -1.
  private func quantize(_ count: Int, key: intfa_rows, value: intfa_rows) -> Int {
    let kernels = unsafe store.kernels
    var firstBad: Int64 = -1
    unsafe withUnsafeMutablePointer(to: &firstBad) { firstBad in
      var survey = unsafe intfa_survey()
      unsafe survey.rows = value
      unsafe survey.end = Int64(count)
      unsafe survey.dimension = Int32(layout.valueDimension)
      unsafe survey.limit = .infinity
      unsafe survey.first_bad = firstBad
      unsafe survey.rotates = recipe.rotatesValue
      unsafe survey.row_maxima = staging.place(staging.maxima, seat)
      unsafe kernels.survey(&survey)
    }
    var fold = unsafe intfa_fold_fixed()
    unsafe fold.maxima = UnsafePointer(staging.place(staging.maxima, seat))
    unsafe fold.count = Int64(count)
    unsafe fold.unit = first.valueUnit(head)
    unsafe fold.multipliers = staging.place(staging.multipliers, seat)
    unsafe fold.weights = staging.place(staging.weights, seat, as: Int8.self)
    unsafe fold.real_weights = staging.place(staging.realWeights, seat)
    unsafe fold.logarithms = staging.place(staging.folds, seat)
    unsafe intfa_fold_fixed_values(&fold)

    var keys = unsafe intfa_quantize()
    unsafe keys.rows = key
    unsafe keys.end = Int64(count)
    unsafe keys.dimension = Int32(layout.headDimension)
    unsafe keys.rotates = recipe.rotatesQueryAndKey
    if recipe.centersKey { unsafe keys.mean = UnsafePointer(first.keyMean(head)) }
    unsafe keys.codes = staging.place(staging.keyCodes, seat, as: Int8.self)
    unsafe keys.scales = staging.place(staging.keyScales, seat)
    unsafe kernels.quantize(&keys)

    var values = unsafe intfa_quantize()
    unsafe values.rows = value
    unsafe values.end = Int64(count)
    unsafe values.dimension = Int32(layout.valueDimension)
    unsafe values.rotates = recipe.rotatesValue
    unsafe values.multipliers = UnsafePointer(staging.place(staging.multipliers, seat))
    unsafe values.codes = staging.place(staging.valueCodes, seat, as: Int8.self)
    unsafe kernels.quantize(&values)
    return Int(unsafe fold.first_outlier)
  }

  // MARK: Arrays over tokens

  /// Places of positions that are in one unit: in the pool, and in the open tile.
  private func storeArrays(_ positions: Range<Int>, from index: Int, isReal: Bool) {
    copyArrays(
      positions,
      from: index,
      to: store.units,
      at: poolToken(positions.lowerBound),
      (store.keyScales, store.folds, store.weights, isReal ? store.realWeights : nil)
    )
    guard let open else { return }
    copyArrays(
      positions,
      from: index,
      to: open.memory,
      at: positions.lowerBound - open.start,
      (open.keyScales, open.folds, open.weights, isReal ? open.realWeights : nil)
    )
  }

  private func copyArrays(
    _ positions: Range<Int>,
    from index: Int,
    to memory: CPUMemory,
    at token: Int,
    _ regions: (
      keyScales: CPUMemory.Region, folds: CPUMemory.Region, weights: CPUMemory.Region,
      realWeights: CPUMemory.Region?
    )
  ) {
    let count = positions.count
    for (source, target) in [
      (staging.keyScales, regions.keyScales), (staging.folds, regions.folds),
      (staging.realWeights, regions.realWeights),
    ] {
      guard let target else { continue }
      let from = unsafe staging.place(source, seat) + index
      unsafe (memory.place(target, head) + token).update(from: from, count: count)
    }
    let from = unsafe staging.place(staging.weights, seat, as: Int8.self) + index
    unsafe (memory.place(regions.weights, head, as: Int8.self) + token)
      .update(from: from, count: count)
  }

  /// Writes the real weights of the tile's earlier tokens, which are integers.
  private func flag(upTo position: Int) {
    for earlier in tile.lowerBound..<max(position, tile.lowerBound) {
      let token = poolToken(earlier)
      let weight = Float(unsafe store.units.place(store.weights, head, as: Int8.self)[token])
      unsafe store.units.place(store.realWeights, head)[token] = weight
      if let open {
        unsafe open.memory.place(open.realWeights, head)[earlier - open.start] = weight
      }
    }
  }

  private func poolToken(_ position: Int) -> Int {
    let length = KVCacheLayout.unitLength
    return Int(units[position / length]) * length + position % length
  }

  // MARK: Codes

  private func storeCodes(_ positions: Range<Int>, from index: Int) {
    let length = KVCacheLayout.unitLength
    let unit = positions.lowerBound / length
    let isWhole = positions.count == length
    let key =
      unsafe staging.place(staging.keyCodes, seat, as: Int8.self)
      + index * layout.headDimension
    let value =
      unsafe staging.place(staging.valueCodes, seat, as: Int8.self)
      + index * layout.valueDimension
    if open == nil, isWhole {
      unsafe store.pack(head, units[unit], key: key, value: value)
      return
    }
    let place = open.map { positions.lowerBound / length - $0.start / length } ?? 0
    let keyUnit = unsafe open?.keyUnit(head, place) ?? store.keyUnit(head, units[unit])
    let valueUnit = unsafe open?.valueUnit(head, place) ?? store.valueUnit(head, units[unit])
    let token = positions.lowerBound % length
    if token == 0 {
      unsafe store.keyPlaces.clear(keyUnit)
      unsafe store.valuePlaces.clear(valueUnit)
    }
    unsafe store.keyPlaces.scatter(key, token: token, count: positions.count, into: keyUnit)
    unsafe store.valuePlaces.scatter(value, token: token, count: positions.count, into: valueUnit)
  }

  /// Stores the full tile in 4 bits.
  private func close(_ open: CPUOpenTile) {
    unsafe open.pack(
      head,
      upTo: tile.count / KVCacheLayout.unitLength,
      units,
      keyRows: staging.place(staging.keyCodes, seat, as: Int8.self),
      valueRows: staging.place(staging.valueCodes, seat, as: Int8.self)
    )
  }
}

extension CPUCacheStore {
  /// Packs 64 tokens of codes into a unit.
  func pack(
    _ head: Int,
    _ unit: Int32,
    key: UnsafePointer<Int8>,
    value: UnsafePointer<Int8>
  ) {
    let kernels = unsafe kernels
    var arguments = unsafe intfa_pack()
    unsafe arguments.codes = key
    unsafe arguments.end = Int64(KVCacheLayout.unitLength)
    unsafe arguments.dimension = Int32(layout.headDimension)
    unsafe arguments.int4 = method.hasInt4Key
    unsafe arguments.target = keyUnit(head, unit)
    unsafe kernels.pack_keys(&arguments)
    unsafe arguments.codes = value
    unsafe arguments.dimension = Int32(layout.valueDimension)
    unsafe arguments.int4 = method.hasInt4Value
    unsafe arguments.target = valueUnit(head, unit)
    unsafe kernels.pack_values(&arguments)
  }

  /// Packs 64 tokens that are in four bits already, in the order of a snapshot.
  func packFourBits(_ head: Int, _ unit: Int32, _ source: UnsafePointer<UInt8>, isKey: Bool) {
    let kernels = unsafe kernels
    var arguments = unsafe intfa_pack()
    unsafe arguments.four_bits = source
    unsafe arguments.end = Int64(KVCacheLayout.unitLength)
    unsafe arguments.dimension = Int32(isKey ? layout.headDimension : layout.valueDimension)
    unsafe arguments.int4 = true
    unsafe arguments.target = isKey ? keyUnit(head, unit) : valueUnit(head, unit)
    unsafe isKey ? kernels.pack_keys(&arguments) : kernels.pack_values(&arguments)
  }

  /// A unit of the pool as units in 8 bits.
  func openUnit(
    _ head: Int,
    _ unit: Int32,
    key: UnsafeMutableRawPointer,
    value: UnsafeMutableRawPointer
  ) {
    let kernels = unsafe kernels
    unsafe kernels.open_key_unit(keyUnit(head, unit), Int32(layout.headDimension), key)
    if method.hasInt4Value {
      unsafe kernels.open_value_unit(valueUnit(head, unit), Int32(layout.valueDimension), value)
    } else {
      unsafe value.copyMemory(from: valueUnit(head, unit), byteCount: valueUnitBytes)
    }
  }
}
