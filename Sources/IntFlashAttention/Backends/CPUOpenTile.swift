internal import CAttentionKernels

/// The last tile of a sequence in 4 bits while it is not full.
///
/// Packed codes in 8 bits, and its part of the arrays over tokens. Positions count from the beginning
/// of the tile.
@safe
final class CPUOpenTile {
  let start: Int
  let end: Int
  let memory: CPUMemory
  let keys: CPUMemory.Region  // [Hkv][unit] packed
  let values: CPUMemory.Region  // [Hkv][unit] packed
  let keyScales: CPUMemory.Region  // [Hkv][token] float
  let folds: CPUMemory.Region  // [Hkv][token] float
  let weights: CPUMemory.Region  // [Hkv][token] int8
  let realWeights: CPUMemory.Region  // [Hkv][token] float
  /// Units from the first that are in the pool in 4 bits already, where other sequences may share them:
  /// they are not written again.
  var packedUnits = 0
  /// Those of them whose codes here come from 4 bits: rounding them again would change them.
  var reopenedUnits = 0
  private let store: CPUCacheStore

  init(_ store: CPUCacheStore, start: Int, end: Int) {
    self.store = store
    self.start = start
    self.end = end
    let heads = store.layout.keyValueHeadCount
    let units = (end - start) / KVCacheLayout.unitLength
    let floats = MemoryLayout<Float>.size * (end - start)
    var memory = CPUMemory.Layout()
    keys = memory.take(store.keyPlaces.byteCount * units, parts: heads)
    values = memory.take(store.valuePlaces.byteCount * units, parts: heads)
    keyScales = memory.take(floats, parts: heads)
    folds = memory.take(floats, parts: heads)
    weights = memory.take(end - start, parts: heads)
    realWeights = memory.take(floats, parts: heads)
    self.memory = CPUMemory.required(memory, zeroed: true)
  }

  func copy() -> CPUOpenTile {
    let copy = CPUOpenTile(store, start: start, end: end)
    copy.memory.copyBytes(from: memory)
    copy.packedUnits = packedUnits
    copy.reopenedUnits = reopenedUnits
    return copy
  }

  func keyUnit(_ head: Int, _ unit: Int) -> UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(
      memory.place(keys, head, as: UInt8.self) + unit * store.keyPlaces.byteCount
    )
  }

  func valueUnit(_ head: Int, _ unit: Int) -> UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(
      memory.place(values, head, as: UInt8.self) + unit * store.valuePlaces.byteCount
    )
  }

  /// Stores units of the tile that are complete and not in 4 bits yet; `units` are those of the sequence.
  ///
  /// The rows are memory for 64 tokens.
  func pack(
    _ head: Int,
    upTo unitCount: Int,
    _ units: [Int32],
    keyRows: UnsafeMutablePointer<Int8>,
    valueRows: UnsafeMutablePointer<Int8>
  ) {
    let length = KVCacheLayout.unitLength
    for part in packedUnits..<max(unitCount, packedUnits) {
      unsafe store.keyPlaces.gather(keyUnit(head, part), token: 0, count: length, into: keyRows)
      unsafe store.valuePlaces
        .gather(valueUnit(head, part), token: 0, count: length, into: valueRows)
      unsafe store.pack(head, units[start / length + part], key: keyRows, value: valueRows)
    }
  }

  /// Takes a tile of which `count` positions of the sequence stay back from its units.
  func reopen(_ units: [Int32], count: Int) {
    let length = KVCacheLayout.unitLength
    packedUnits = (count - start) / length
    reopenedUnits = packedUnits
    for head in 0..<store.layout.keyValueHeadCount {
      for part in 0..<CPUTileSizes.pieceCount(count - start, length) {
        let unit = units[start / length + part]
        unsafe store.openUnit(head, unit, key: keyUnit(head, part), value: valueUnit(head, part))
        for (from, to) in [
          (store.keyScales, keyScales), (store.folds, folds), (store.realWeights, realWeights),
        ] {
          let source = unsafe store.units.place(from, head) + Int(unit) * length
          unsafe (memory.place(to, head) + part * length).update(from: source, count: length)
        }
        let source = unsafe store.units.place(store.weights, head, as: Int8.self)
        unsafe (memory.place(weights, head, as: Int8.self) + part * length)
          .update(from: source + Int(unit) * length, count: length)
      }
    }
  }
}
