internal import CAttentionKernels

/// Tokens as plain tensors, in the order of tokens and channels.
extension CPUCacheSequence {
  private typealias Name = KVCacheSnapshot.Name

  func parts(
    count: Int,
    units: [Int32]
  ) throws(AttentionError) -> [String: KVCacheSnapshot.Part] {
    let layout = store.layout
    let (d, dv) = (layout.headDimension, layout.valueDimension)
    var parts: [String: KVCacheSnapshot.Part] = [:]
    func add(
      _ name: Name,
      _ type: ElementType,
      _ shape: [Int],
      _ fill: (_ head: Int, _ target: UnsafeMutableRawPointer) -> Void
    ) throws(AttentionError) {
      let shape = [layout.keyValueHeadCount] + shape
      let tensor = try Tensor(type, shape: shape)
      let bytes = tensor.byteCount / layout.keyValueHeadCount
      for head in 0..<layout.keyValueHeadCount where bytes > 0 {
        unsafe fill(head, tensor.storage + head * bytes)
      }
      parts[name.rawValue] = KVCacheSnapshot.Part(tensor)
    }

    parts[Name.largest.rawValue] = KVCacheSnapshot.Part(try Tensor([largestKey], shape: [1]))
    guard store.method.isTiled else {
      let type: ElementType = layout.recipe.key == .bfloat16 ? .bfloat16 : .float32
      unsafe try add(.key, type, [count, d]) { head, target in
        unsafe gatherFloats(head, units, 0..<count, isKey: true, type, into: target)
      }
      unsafe try add(.value, type, [count, dv]) { head, target in
        unsafe gatherFloats(head, units, 0..<count, isKey: false, type, into: target)
      }
      return parts
    }

    let kept = min(count, CPUFirstTile.length)
    let float = MemoryLayout<Float>.size
    unsafe try add(.firstKey, .float32, [kept, d]) { head, target in
      unsafe target.copyMemory(from: first.keyRows(head), byteCount: float * kept * d)
    }
    unsafe try add(.firstValue, .float32, [kept, dv]) { head, target in
      unsafe target.copyMemory(from: first.valueRows(head), byteCount: float * kept * dv)
    }
    let stored = count < CPUFirstTile.length ? 0 : count
    let closed = min(open?.start ?? stored, stored)
    unsafe try addArrays(stored, units, add)
    let codes = CPUUnitCodes(store)
    if store.method.hasInt4Key {
      unsafe try add(.keyInt4, .int8, [closed / 32, KVCacheSnapshot.int4KeyBytes(d)]) {
        head,
        target in
        for unit in 0..<closed / KVCacheLayout.unitLength {
          let source = unsafe codes.keys(head, units[unit])
          unsafe intfa_four_bit_keys(
            source,
            Int32(d),
            target.assumingMemoryBound(to: UInt8.self) + unit * 2 * KVCacheSnapshot.int4KeyBytes(d)
          )
        }
      }
      unsafe try add(.openKey, .int8, [stored - closed, d]) { head, target in
        unsafe gatherOpen(head, stored - closed, isKey: true, into: target)
      }
      unsafe try add(.openValue, .int8, [stored - closed, dv]) { head, target in
        unsafe gatherOpen(head, stored - closed, isKey: false, into: target)
      }
      parts[Name.reopened.rawValue] = KVCacheSnapshot.Part(
        try Tensor([Float(open?.reopenedUnits ?? 0)], shape: [1])
      )
    } else {
      unsafe try add(.keyCodes, .int8, [stored, d]) { head, target in
        unsafe gatherCodes(head, units, stored, store.keyPlaces, store.keyUnit, into: target)
      }
    }
    if store.method.hasInt4Value {
      let bytes = KVCacheSnapshot.int4ValueBytes(dv)
      unsafe try add(.valueInt4, .int8, [closed, bytes]) { head, target in
        for unit in 0..<closed / KVCacheLayout.unitLength {
          let source = unsafe codes.values(head, units[unit])
          unsafe intfa_four_bit_values(
            source,
            Int32(dv),
            target.assumingMemoryBound(to: UInt8.self)
              + unit * KVCacheLayout.unitLength * bytes
          )
        }
      }
    } else {
      unsafe try add(.valueCodes, .int8, [closed, dv]) { head, target in
        unsafe gatherCodes(head, units, closed, store.valuePlaces, store.valueUnit, into: target)
      }
    }
    return parts
  }

  /// Scales of the keys, n of the values, and where tiles have their outliers.
  private func addArrays(
    _ stored: Int,
    _ units: [Int32],
    _ add: (
      Name, ElementType, [Int], (_ head: Int, _ target: UnsafeMutableRawPointer) -> Void
    ) throws(AttentionError) -> Void
  ) throws(AttentionError) {
    let length = KVCacheLayout.unitLength
    func place(_ position: Int) -> Int {
      Int(units[position / length]) * length + position % length
    }
    unsafe try add(.keyScale, .float32, [stored]) { head, target in
      let scales = unsafe store.units.place(store.keyScales, head)
      let target = unsafe target.assumingMemoryBound(to: Float.self)
      for position in 0..<stored { unsafe target[position] = scales[place(position)] }
    }
    unsafe try add(.valueWeight, .float32, [stored]) { head, target in
      let weights = unsafe store.units.place(store.weights, head, as: Int8.self)
      let real = unsafe store.units.place(store.realWeights, head)
      let flagged = Set(outliers[head].map(tileStart))
      let target = unsafe target.assumingMemoryBound(to: Float.self)
      for position in 0..<stored {
        let index = place(position)
        unsafe target[position] =
          flagged.contains(tileStart(position)) ? real[index] : Float(weights[index])
      }
    }
    var starts: [Int] = []
    while let next = starts.last.map(tileEnd) ?? (stored > 0 ? 0 : nil), next < stored {
      starts.append(next)
    }
    unsafe try add(.outlier, .int8, [starts.count]) { head, target in
      let target = unsafe target.assumingMemoryBound(to: Int8.self)
      for (index, start) in starts.enumerated() {
        let place = outliers[head].first { $0 >= start && $0 < tileEnd(start) }
        unsafe target[index] = place.map { Int8($0 - start) } ?? -1
      }
    }
  }

  // MARK: Codes

  /// Codes of the first `count` tokens, from units in 8 bits.
  private func gatherCodes(
    _ head: Int,
    _ units: [Int32],
    _ count: Int,
    _ places: CPUUnitPlaces,
    _ unit: (Int, Int32) -> UnsafeMutableRawPointer,
    into target: UnsafeMutableRawPointer
  ) {
    let length = KVCacheLayout.unitLength
    for start in stride(from: 0, to: count, by: length) {
      unsafe places.gather(
        unit(head, units[start / length]),
        token: 0,
        count: min(length, count - start),
        into: target + start * places.dimension
      )
    }
  }

  /// The same of the open tile.
  private func gatherOpen(
    _ head: Int,
    _ count: Int,
    isKey: Bool,
    into target: UnsafeMutableRawPointer
  ) {
    guard let open else { return }
    let units = (0..<Int32(CPUTileSizes.pieceCount(count, KVCacheLayout.unitLength))).map { $0 }
    unsafe gatherCodes(
      head,
      units,
      count,
      isKey ? store.keyPlaces : store.valuePlaces,
      { head, unit in
        unsafe isKey ? open.keyUnit(head, Int(unit)) : open.valueUnit(head, Int(unit))
      },
      into: target
    )
  }

  /// Floats of tokens `range`, as float32 or bfloat16.
  private func gatherFloats(
    _ head: Int,
    _ units: [Int32],
    _ range: Range<Int>,
    isKey: Bool,
    _ type: ElementType,
    into target: UnsafeMutableRawPointer
  ) {
    let length = KVCacheLayout.unitLength
    let places = isKey ? store.keyPlaces : store.valuePlaces
    var floats = [UInt32](repeating: 0, count: length * places.dimension)
    unsafe floats.withUnsafeMutableBufferPointer { floats in
      guard let base = floats.baseAddress else { return }
      for start in stride(from: range.lowerBound, to: range.upperBound, by: length) {
        let unit = units[start / length]
        let count = min(length, range.upperBound - start)
        unsafe places.gather(
          isKey ? store.keyUnit(head, unit) : store.valueUnit(head, unit),
          token: 0,
          count: count,
          into: base
        )
        for index in 0..<count * places.dimension {
          let place = start * places.dimension + index
          if type == .bfloat16 {
            unsafe target.assumingMemoryBound(to: UInt16.self)[place] = UInt16(base[index] >> 16)
          } else {
            unsafe target.assumingMemoryBound(to: UInt32.self)[place] = base[index]
          }
        }
      }
    }
  }
}

/// Units of four bits as rows of codes, in memory of its own.
@safe
private final class CPUUnitCodes {
  private let store: CPUCacheStore
  private let memory: CPUMemory
  private let keyUnit: CPUMemory.Region
  private let valueUnit: CPUMemory.Region
  private let rows: CPUMemory.Region

  init(_ store: CPUCacheStore) {
    self.store = store
    let length = KVCacheLayout.unitLength
    var memory = CPUMemory.Layout()
    keyUnit = memory.take(store.keyPlaces.byteCount)
    valueUnit = memory.take(store.valuePlaces.byteCount)
    rows = memory.take(length * max(store.layout.headDimension, store.layout.valueDimension))
    self.memory = CPUMemory.required(memory, zeroed: false)
  }

  func keys(_ head: Int, _ unit: Int32) -> UnsafePointer<Int8> {
    open(head, unit)
    return unsafe gather(store.keyPlaces, keyUnit)
  }

  func values(_ head: Int, _ unit: Int32) -> UnsafePointer<Int8> {
    open(head, unit)
    return unsafe gather(store.valuePlaces, valueUnit)
  }

  private func open(_ head: Int, _ unit: Int32) {
    unsafe store.openUnit(
      head,
      unit,
      key: UnsafeMutableRawPointer(memory.place(keyUnit, as: UInt8.self)),
      value: UnsafeMutableRawPointer(memory.place(valueUnit, as: UInt8.self))
    )
  }

  private func gather(_ places: CPUUnitPlaces, _ unit: CPUMemory.Region) -> UnsafePointer<Int8> {
    let target = unsafe memory.place(rows, as: Int8.self)
    unsafe places.gather(
      UnsafeRawPointer(memory.place(unit, as: UInt8.self)),
      token: 0,
      count: KVCacheLayout.unitLength,
      into: target
    )
    return unsafe UnsafePointer(target)
  }
}
