internal import CAttentionKernels

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// Tokens of a snapshot into units and into what a sequence has beside them.
extension CPUCacheSequence {
  var restores: Bool { true }

  func restore(_ snapshot: KVCacheSnapshot, units: [Int32]) {
    let largest = snapshot.part(.largest)?.floats.first ?? 0
    guard store.method.isTiled else {
      restoreFloats(snapshot, units)
      replace(open: nil, outliers: outliers, largestKey: largest)
      return
    }
    first.restore(snapshot)
    if snapshot.storedCount > 0 { first.freeze(store) }
    let starts = snapshot.tileStarts
    let places = snapshot.part(.outlier)?.bytes.map { Int(Int8(bitPattern: $0)) } ?? []
    let outliers = (0..<store.layout.keyValueHeadCount).map { head in
      starts.indices.compactMap { index in
        let place = places[head * starts.count + index]
        return place < 0 ? nil : starts[index] + place
      }
    }
    var open: CPUOpenTile?
    if store.method.hasInt4Key, snapshot.closedCount < snapshot.storedCount {
      let start = snapshot.closedCount
      open = CPUOpenTile(store, start: start, end: tileEnd(start))
    }
    restoreArrays(snapshot, units, open, outliers)
    restoreCodes(snapshot, units, open)
    replace(open: open, outliers: outliers, largestKey: largest)
  }

  /// Scales of keys and values, in the pool and in the open tile.
  private func restoreArrays(
    _ snapshot: KVCacheSnapshot,
    _ units: [Int32],
    _ open: CPUOpenTile?,
    _ outliers: [[Int]]
  ) {
    let length = KVCacheLayout.unitLength
    let count = snapshot.storedCount
    let scales = snapshot.part(.keyScale)?.floats ?? []
    let weights = snapshot.part(.valueWeight)?.floats ?? []
    for head in outliers.indices {
      let flagged = Set(outliers[head].map(tileStart))
      for position in 0..<count {
        let (scale, n) = (scales[head * count + position], weights[head * count + position])
        // As intfa_fold_fixed_values has it.
        let fold = Float(-64 * log2(Double(n)))
        let isReal = flagged.contains(tileStart(position))
        func put(
          _ memory: CPUMemory,
          _ token: Int,
          _ keyScales: CPUMemory.Region,
          _ folds: CPUMemory.Region,
          _ codes: CPUMemory.Region,
          _ realWeights: CPUMemory.Region
        ) {
          unsafe memory.place(keyScales, head)[token] = scale
          unsafe memory.place(folds, head)[token] = fold
          unsafe memory.place(codes, head, as: Int8.self)[token] = n >= 1 ? Int8(n) : 1
          if isReal { unsafe memory.place(realWeights, head)[token] = n }
        }
        put(
          store.units,
          Int(units[position / length]) * length + position % length,
          store.keyScales,
          store.folds,
          store.weights,
          store.realWeights
        )
        if let open, position >= open.start {
          put(
            open.memory,
            position - open.start,
            open.keyScales,
            open.folds,
            open.weights,
            open.realWeights
          )
        }
      }
    }
  }

  // MARK: Codes

  private func restoreCodes(
    _ snapshot: KVCacheSnapshot,
    _ units: [Int32],
    _ open: CPUOpenTile?
  ) {
    let closed = snapshot.closedCount
    let isInt4 = store.method.hasInt4Key
    let layout = store.layout
    for head in 0..<layout.keyValueHeadCount {
      if isInt4 {
        restoreFourBits(snapshot.part(.keyInt4), head, units, closed, isKey: true)
      } else {
        unsafe scatter(snapshot.part(.keyCodes), head, store.keyPlaces) {
          unsafe store.keyUnit(head, units[$0])
        }
      }
      if store.method.hasInt4Value {
        restoreFourBits(snapshot.part(.valueInt4), head, units, closed, isKey: false)
      } else {
        unsafe scatter(snapshot.part(.valueCodes), head, store.valuePlaces) {
          unsafe store.valueUnit(head, units[$0])
        }
      }
      guard let open else { continue }
      unsafe scatter(snapshot.part(.openKey), head, store.keyPlaces) {
        unsafe open.keyUnit(head, $0)
      }
      unsafe scatter(snapshot.part(.openValue), head, store.valuePlaces) {
        unsafe open.valueUnit(head, $0)
      }
    }
    guard let open, let reopened = snapshot.part(.reopened)?.floats.first else { return }
    open.packedUnits = Int(reopened)
    open.reopenedUnits = Int(reopened)
    for head in 0..<layout.keyValueHeadCount {
      for unit in 0..<open.reopenedUnits { restoreReopened(snapshot, head, unit, units, open) }
    }
  }

  /// A unit of the open tile that is in 4 bits in the pool, with steps that give its codes back.
  private func restoreReopened(
    _ snapshot: KVCacheSnapshot,
    _ head: Int,
    _ unit: Int,
    _ units: [Int32],
    _ open: CPUOpenTile
  ) {
    guard let key = snapshot.part(.openKey), let value = snapshot.part(.openValue) else { return }
    let length = KVCacheLayout.unitLength
    let (d, dv) = (store.layout.headDimension, store.layout.valueDimension)
    let place = head * key.tensor.shape[1] + unit * length
    let pooled = units[open.start / length + unit]
    let keyCodes = unsafe (key.tensor.storage + place * d).assumingMemoryBound(to: Int8.self)
    let valueCodes = unsafe (value.tensor.storage + place * dv).assumingMemoryBound(to: Int8.self)
    let bytes = max(
      length / 32 * KVCacheSnapshot.int4KeyBytes(d),
      length * KVCacheSnapshot.int4ValueBytes(dv)
    )
    unsafe withUnsafeTemporaryAllocation(of: UInt8.self, capacity: bytes) { buffer in
      guard let target = buffer.baseAddress else { return }
      unsafe intfa_four_bit_keys(keyCodes, Int32(d), target)
      unsafe store.packFourBits(head, pooled, target, isKey: true)
      guard store.method.hasInt4Value else {
        unsafe store.valuePlaces.clear(store.valueUnit(head, pooled))
        unsafe store.valuePlaces
          .scatter(valueCodes, token: 0, count: length, into: store.valueUnit(head, pooled))
        return
      }
      unsafe intfa_four_bit_values(valueCodes, Int32(dv), target)
      unsafe store.packFourBits(head, pooled, target, isKey: false)
    }
    extendLifetime(key)
    extendLifetime(value)
  }

  /// Rows of codes [heads][tokens][dimension] of one head into units in 8 bits.
  private func scatter(
    _ part: KVCacheSnapshot.Part?,
    _ head: Int,
    _ places: CPUUnitPlaces,
    _ unit: (Int) -> UnsafeMutableRawPointer
  ) {
    guard let part else { return }
    let length = KVCacheLayout.unitLength
    let (count, dimension) = (part.tensor.shape[1], part.tensor.shape[2])
    for start in stride(from: 0, to: count, by: length) {
      let target = unsafe unit(start / length)
      unsafe places.clear(target)
      unsafe places.scatter(
        part.tensor.storage + (head * count + start) * dimension,
        token: 0,
        count: min(length, count - start),
        into: target
      )
    }
  }

  private func restoreFourBits(
    _ part: KVCacheSnapshot.Part?,
    _ head: Int,
    _ units: [Int32],
    _ count: Int,
    isKey: Bool
  ) {
    guard let part, count > 0 else { return }
    let (heads, length) = (store.layout.keyValueHeadCount, KVCacheLayout.unitLength)
    let bytes = part.tensor.byteCount / heads / (count / length)
    let base = unsafe part.tensor.storage.assumingMemoryBound(to: UInt8.self)
    for unit in 0..<count / length {
      unsafe store.packFourBits(
        head,
        units[unit],
        UnsafePointer(base + (head * (count / length) + unit) * bytes),
        isKey: isKey
      )
    }
  }

  /// Floats are stored as new tokens are: they have been rounded, and rounding again changes nothing.
  private func restoreFloats(_ snapshot: KVCacheSnapshot, _ units: [Int32]) {
    guard snapshot.count > 0, let key = snapshot.part(.key), let value = snapshot.part(.value)
    else { return }
    let tokens = KVCacheTokens(key: key.operand, value: value.operand)
    appendFloats(tokens, firstPosition: 0, 0..<snapshot.count, units)
    extendLifetime(key)
    extendLifetime(value)
  }
}

extension CPUFirstTile {
  /// Takes the first tokens of a snapshot.
  func restore(_ snapshot: KVCacheSnapshot) {
    guard let key = snapshot.part(.firstKey), let value = snapshot.part(.firstValue) else { return }
    let count = key.tensor.shape[1]
    let float = MemoryLayout<Float>.size
    for head in 0..<key.tensor.shape[0] where count > 0 {
      func copy(_ part: KVCacheSnapshot.Part, _ rows: UnsafeMutablePointer<Float>) {
        let bytes = float * count * part.tensor.shape[2]
        unsafe UnsafeMutableRawPointer(rows)
          .copyMemory(from: part.tensor.storage + head * bytes, byteCount: bytes)
      }
      unsafe copy(key, keyRows(head))
      unsafe copy(value, valueRows(head))
    }
  }
}

extension KVCacheSnapshot.Part {
  /// [heads, tokens, dimension] as an operand, which must not outlive the part.
  fileprivate var operand: AttentionOperands.Operand {
    let shape = tensor.shape
    return AttentionOperands.Operand(
      unsafe TensorView(
        unsafeBase: UnsafeRawPointer(tensor.storage),
        elementType: tensor.elementType,
        shape: [1] + shape,
        strides: [0, shape[1] * shape[2], shape[2], 1]
      )
    )
  }
}
