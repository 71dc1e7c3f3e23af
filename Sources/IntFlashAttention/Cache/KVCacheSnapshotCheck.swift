/// Whether the tensors of a snapshot are those of its precision, and hold what a cache can hold.
struct KVCacheSnapshotCheck {
  private let snapshot: KVCacheSnapshot
  private let recipe: QuantizationRecipe
  private typealias Name = KVCacheSnapshot.Name

  init(_ snapshot: KVCacheSnapshot, _ recipe: QuantizationRecipe) {
    self.snapshot = snapshot
    self.recipe = recipe
  }

  /// The tensors that a snapshot has: type and shape by name.
  private var expected: [Name: (type: ElementType, shape: [Int])] {
    let (heads, d, dv) = (
      snapshot.keyValueHeadCount, snapshot.headDimension, snapshot.valueDimension
    )
    var result: [Name: (type: ElementType, shape: [Int])] = [.largest: (.float32, [1])]
    guard snapshot.isTiled else {
      let type: ElementType = snapshot.precision == .bfloat16 ? .bfloat16 : .float32
      result[.key] = (type, [heads, snapshot.count, d])
      result[.value] = (type, [heads, snapshot.count, dv])
      return result
    }
    let kept = min(snapshot.count, KVCacheLayout.unitLength)
    result[.firstKey] = (.float32, [heads, kept, d])
    result[.firstValue] = (.float32, [heads, kept, dv])
    let (stored, closed) = (snapshot.storedCount, snapshot.closedCount)
    result[.keyScale] = (.float32, [heads, stored])
    result[.valueWeight] = (.float32, [heads, stored])
    result[.outlier] = (.int8, [heads, snapshot.tileCount])
    if snapshot.hasInt4Key {
      result[.keyInt4] = (.int8, [heads, closed / 32, KVCacheSnapshot.int4KeyBytes(d)])
      result[.openKey] = (.int8, [heads, stored - closed, d])
      result[.openValue] = (.int8, [heads, stored - closed, dv])
      result[.reopened] = (.float32, [1])
    } else {
      result[.keyCodes] = (.int8, [heads, stored, d])
    }
    if snapshot.hasInt4Value {
      result[.valueInt4] = (.int8, [heads, closed, KVCacheSnapshot.int4ValueBytes(dv)])
    } else {
      result[.valueCodes] = (.int8, [heads, snapshot.hasInt4Key ? closed : stored, dv])
    }
    return result
  }

  func run() throws(AttentionError) {
    let expected = expected
    let known = Set(expected.keys.map(\.rawValue))
    for name in snapshot.names where !known.contains(name) {
      throw AttentionError(
        .invalidArgument,
        "snapshot tensor \(name) does not belong to precision \(snapshot.precision.rawValue)"
      )
    }
    for name in Name.allCases {
      guard let (type, shape) = expected[name] else { continue }
      guard let part = snapshot.part(name) else {
        throw AttentionError(.invalidArgument, "snapshot tensor \(name.rawValue) is missing")
      }
      guard part.tensor.elementType == type, part.tensor.shape == shape else {
        throw AttentionError(
          .shapeMismatch,
          "snapshot tensor \(name.rawValue) is \(part.tensor.elementType.rawValue) "
            + "\(part.tensor.shape); it must be \(type.rawValue) \(shape)"
        )
      }
      try checkValues(name, part)
    }
  }

  private func checkValues(
    _ name: Name,
    _ part: KVCacheSnapshot.Part
  ) throws(AttentionError) {
    switch name {
    case .firstKey: try checkFloats(name, part, below: InputCheck.limit(for: recipe.key))
    case .firstValue: try checkFloats(name, part, below: InputCheck.limit(for: recipe.value))
    case .key, .value:
      // Rounding to bfloat16 can reach the limit.
      try checkFloats(name, part, below: InputCheck.limit(for: recipe.key).nextUp)
    case .keyCodes, .valueCodes, .openKey, .openValue:
      try check(name, part.bytes) { $0 != 0x80 }
    case .keyScale, .largest:
      try checkFloats(name, part, below: .greatestFiniteMagnitude) { $0 >= 0 }
    case .reopened:
      let most = Float((snapshot.storedCount - snapshot.closedCount) / KVCacheLayout.unitLength)
      try checkFloats(name, part, below: most.nextUp) { $0 >= 0 && $0 == $0.rounded() }
    case .valueWeight:
      // Whole where it fits 8 bits.
      try checkFloats(name, part, below: 128) {
        $0 >= 0 && ($0 < 1 || $0 == $0.rounded(.towardZero))
      }
    case .outlier:
      let starts = snapshot.tileStarts
      let lengths = starts.map {
        min(snapshot.tileEnd($0), snapshot.storedCount) - $0
      }
      for (index, byte) in part.bytes.enumerated() {
        let place = Int(Int8(bitPattern: byte))
        guard place < -1 || place >= lengths[index % lengths.count] else { continue }
        throw refusal(name, index, "\(place)")
      }
    case .keyInt4:
      let d = snapshot.headDimension
      try checkGroups(name, part, row: KVCacheSnapshot.int4KeyBytes(d), steps: 16 * d..<17 * d)
    case .valueInt4:
      let (bytes, groups) = ((snapshot.valueDimension + 1) / 2, (snapshot.valueDimension + 15) / 16)
      try checkGroups(
        name,
        part,
        row: KVCacheSnapshot.int4ValueBytes(snapshot.valueDimension),
        steps: bytes..<bytes + groups
      )
    }
  }

  private func refusal(_ name: Name, _ index: Int, _ value: String) -> AttentionError {
    AttentionError(
      .invalidArgument,
      "snapshot tensor \(name.rawValue) has \(value) at \(index), which no cache holds there"
    )
  }

  private func check(
    _ name: Name,
    _ bytes: [UInt8],
    _ isValid: (UInt8) -> Bool
  ) throws(AttentionError) {
    guard let index = bytes.firstIndex(where: { !isValid($0) }) else { return }
    throw refusal(name, index, "\(Int8(bitPattern: bytes[index]))")
  }

  private func checkFloats(
    _ name: Name,
    _ part: KVCacheSnapshot.Part,
    below limit: Float,
    _ isValid: (Float) -> Bool = { _ in true }
  ) throws(AttentionError) {
    let values = part.floats
    guard let index = values.firstIndex(where: { !($0.magnitude < limit && isValid($0)) })
    else { return }
    throw refusal(name, index, "\(values[index])")
  }

  /// Steps are 1…17, so that products of codes stay bytes; offsets follow them.
  private func checkGroups(
    _ name: Name,
    _ part: KVCacheSnapshot.Part,
    row: Int,
    steps: Range<Int>
  ) throws(AttentionError) {
    for (index, byte) in part.bytes.enumerated() {
      let place = index % row
      let isValid =
        if steps.contains(place) { byte >= 1 && byte <= 17 } else {
          place < steps.upperBound || byte != 0x80
        }
      guard isValid else { throw refusal(name, index, "\(Int8(bitPattern: byte))") }
    }
  }
}

extension KVCacheSnapshot.Part {
  /// The elements as float32: a copy.
  package var floats: [Float] { tensor.copyFloats() }

  /// The storage of an int8 tensor: a copy.
  package var bytes: [UInt8] {
    unsafe Array(UnsafeRawBufferPointer(start: tensor.storage, count: tensor.byteCount))
  }
}

extension KVCacheSnapshot {
  private var recipe: QuantizationRecipe { precision.streamingRecipe ?? precision.recipe }

  /// Whether tokens are integer codes, from the first full tile on.
  package var isTiled: Bool { precision != .bfloat16 && precision != .float32 }
  package var hasInt4Key: Bool { precision == .int4 || precision == .int4KeyValue }
  package var hasInt4Value: Bool { precision == .int4KeyValue }

  /// Bytes of 32 keys in 4 bits: pairs of codes, steps, offsets.
  static func int4KeyBytes(_ dimension: Int) -> Int { 18 * dimension }

  /// Bytes of a value in 4 bits: pairs of codes, and of every 16 channels the step and the offset.
  static func int4ValueBytes(_ dimension: Int) -> Int {
    (dimension + 1) / 2 + 2 * ((dimension + 15) / 16)
  }

  /// Tokens that are stored as codes: none before the first tile is full.
  package var storedCount: Int { count < KVCacheLayout.unitLength ? 0 : count }

  /// Tokens in whole tiles.
  package var closedCount: Int {
    guard storedCount > 0 else { return 0 }
    let last = recipe.tileStart(of: storedCount - 1, tileLength: recipe.tileLength)
    return tileEnd(last) <= storedCount ? storedCount : last
  }

  /// Tiles with stored tokens.
  package var tileCount: Int {
    guard storedCount > 0 else { return 0 }
    let rest = max(storedCount - recipe.firstTileLength, 0)
    return 1 + (rest + recipe.tileLength - 1) / recipe.tileLength
  }

  package func tileEnd(_ start: Int) -> Int {
    start + (start == 0 ? recipe.firstTileLength : recipe.tileLength)
  }

  /// Where tiles with stored tokens begin.
  package var tileStarts: [Int] {
    var starts: [Int] = []
    var start = 0
    while start < storedCount {
      starts.append(start)
      start = tileEnd(start)
    }
    return starts
  }
}
