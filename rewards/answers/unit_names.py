"""The names of units: base, size in base units, names in English, French, German, Chinese and Japanese.

"¤" is a dollar sign that is money (notation.py). A name that two units share ("pounds", "¥") is in SECOND_SENSE too.
"""

# The name, and the name of the other unit that it may stand for.
SECOND_SENSE = {"pound": "£", "pounds": "£", "¥": "円", "分": "分钱"}
TABLE = """
length 1 m meter meters metre metres mètre mètres Meter 米 公尺 メートル
length 1/1000 mm millimeter millimeters millimetre millimetres millimètre millimètres Millimeter 毫米 ミリメートル
length 1/100 cm centimeter centimeters centimetre centimetres
length 1/100 centimètre centimètres Zentimeter 厘米 公分 センチメートル センチ
length 1/10 dm decimeter decimeters decimetre decimetres décimètre décimètres Dezimeter 分米
length 1000 km kilometer kilometers kilometre kilometres kilomètre kilomètres Kilometer 千米 公里 キロメートル
length 127/5000 inch inches in in.
length 381/1250 ft foot feet
length 1143/1250 yd yard yards
length 201168/125 mi mile miles
length 500 里
volume 1/1000 L l liter liters litre litres Liter 升 リットル
volume 1/1000000 mL ml milliliter milliliters millilitre millilitres Milliliter 毫升 ミリリットル
volume 473176473/125000000000 gal gallon gallons
area 10000 ha hectare hectares Hektar 公顷 ヘクタール
area 2000/3 亩
mass 1 kg kilogram kilograms kilogramme kilogrammes Kilogramm 千克 公斤 キログラム
mass 1/1000 g gram grams gramme grammes Gramm 克 グラム
mass 1/1000000 mg milligram milligrams Milligramm 毫克
mass 1000 tonne tonnes Tonne Tonnen ton tons 吨 トン
mass 45359237/100000000 lb lbs pound-mass pound pounds Pfund
mass 1/2 斤
mass 45359237/1600000000 oz ounce ounces
time 1 s sec secs second seconds seconde secondes Sekunde Sekunden 秒 秒钟
time 1/1000 ms millisecond milliseconds
time 60 min mins minute minutes Minute Minuten 分 分钟 分鐘
time 3600 h hr hrs hour hours heure heures Stunde Stunden Std 时 小时 小時 个小时 時間 時
time 86400 day days jour jours Tag Tage Tagen 天 日
time 604800 week weeks semaine semaines Woche Wochen 周 星期 个星期 週間
month 12 yr year years ans année années Jahr Jahre Jahren 年 年間
month 1 month months mois Monat Monate Monaten 月 个月 ヶ月 か月
degree 1 ° deg degree degrees degré degrés Grad 度
radian 1 rad radian radians
temperature 1 °C Celsius celsius K Kelvin kelvin kelvins 摄氏度
temperature 5/9 °F Fahrenheit fahrenheit
usd 1 dollar dollars USD ¤ 美元 ドル
usd 1/100 cent cents ¢
eur 1 euro euros € EUR Euro Euros 欧元 ユーロ
gbp 1 £ GBP 英镑
cny 1 ¥ yuan RMB CNY 元 块 元钱 块钱 人民币 圆
cny 1/10 角
cny 1/100 分钱
rupee 1 ₹ rupee rupees
force 1 N newton newtons
energy 1 J joule joules
energy 1000 kJ kilojoule kilojoules
power 1 W watt watts
power 1000 kW kilowatt kilowatts
voltage 1 V volt volts
current 1 A ampere amperes amp amps
resistance 1 Ω ohm ohms
pressure 1 Pa pascal pascals
pressure 1000 kPa
frequency 1 Hz hertz
amount 1 mol mole moles
none 1 unit units
jpy 1 yen Yen 円 日元 JPY
"""
